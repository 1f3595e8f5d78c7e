"""What of a `data` section determines the prepared bytes: recipe.json, and what is compared with it."""

import json
from pathlib import Path
from typing import Any

from emergence_train.data_config import Data
from emergence_train.errors import InputError
from emergence_train.input_files import read_text

FILE = "recipe.json"


def of_texts(data: Data) -> dict:
    """The recipe but for what weights come to: not worker counts and the path."""
    recipe = data.model_dump(mode="json", exclude={"path", "workers", "bad_rows"})
    for source in recipe["sources"] + recipe["ood"]:
        del source["weight"], source["in_iid"]
    return recipe


def known(recipe: Any) -> Any:
    """The recipe without unset keys, so that keys which a later version adds compare as equal."""
    if isinstance(recipe, dict):
        return {key: known(value) for key, value in recipe.items() if value is not None}
    return [known(value) for value in recipe] if isinstance(recipe, list) else recipe


def read(root: Path) -> dict | None:
    """The recipe of a prepared data set; None where it cannot be read."""
    try:
        recipe = known(json.loads(read_text(root / FILE)))
        _parts(recipe)
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):  # the last three: other JSON
        return None
    return recipe


def check(data: Data) -> None:
    """Raise InputError where `data.path` was prepared from another section than `data`, of which a run would record settings that
    nothing has. Weights are the run's own, and it may leave out sources and validation sets: they are those of the data."""
    root = Path(data.path)
    before = read(root)
    if before is None:  # its index and checksums say what it is
        return
    ours, theirs = _parts(known(of_texts(data))), _parts(before)
    left_out = {key for key in theirs.keys() - ours.keys() if " of " in key}
    for key in sorted((ours.keys() | theirs.keys()) - left_out):
        if (wanted := ours.get(key)) != (has := theirs.get(key)):
            other = f"another data.{key}" if " of " in key else f"data.{key} = {has}, not {wanted}"
            raise InputError(
                f"{root}: was prepared with {other}; give it as {root / FILE} has it, or prepare it under another data.path"
            )


def _parts(recipe: dict) -> dict[str, Any]:
    """What is compared, by its name: the tokenizer's and the validation's keys, every source."""
    parts = {"shard_tokens": recipe.get("shard_tokens")}
    for section in ("tokenizer", "validation"):
        parts |= {f"{section}.{key}": value for key, value in recipe.get(section, {}).items()}
    for section in ("sources", "ood"):
        parts |= {f"{section} of {source['domain']}": source for source in recipe.get(section, [])}
    return parts
