"""`${key}` and `${VARIABLE}` in a configuration, and names that follow from what was changed: `name: auto`.

Only where a run is named and put is anything replaced (PLACES): a prompt or a path of data may hold such signs itself.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from emergence_train.errors import InputError

PLACES = ("name", "out", "logging")
AUTO = "auto"
MARK = re.compile(r"\$\{([^{}]*)\}")
UNFIT = re.compile(r"[^A-Za-z0-9_.-]+")  # for a run's name
UNNAMED = ("name", "out", "logging", "data.path")  # overrides that do not make another run


def wanted(tree: dict) -> bool:
    """Whether anything is to be replaced."""
    return tree.get("name") == AUTO or any(MARK.search(text) for place in PLACES for text in _texts(tree.get(place)))


def interpolate(
    tree: dict, values: dict, environment: Mapping[str, str], *, origin: str, overrides: list[str] | tuple[str, ...]
) -> dict:
    """The tree with every mark replaced.

    Args:
        values: the resolved configuration, which has defaults too. environment: variables, in capitals.
        origin: the file's name without its ending; overrides: as given. `auto` is made of both, and of WANDB_RUN_ID, which
            each trial of a sweep has for itself, so the same command is the same run.
    """

    def replace(text: str) -> str:
        return MARK.sub(lambda match: _value(match[1], values, environment, text), text)

    replaced = {place: _mapped(tree[place], replace) for place in PLACES if place in tree}
    if tree.get("name") == AUTO:
        replaced["name"] = automatic_name(origin, overrides, environment.get("WANDB_RUN_ID"))
    elif isinstance(replaced.get("name"), str) and replaced["name"] != tree["name"]:
        replaced["name"] = UNFIT.sub("-", replaced["name"])
    return tree | replaced


def automatic_name(origin: str, overrides: list[str] | tuple[str, ...], trial: str | None) -> str:
    """mine.yaml with training.schedule.lr=0.01 and seed=2: mine-lr0.01-seed2, and -TRIAL in a sweep."""
    parts = [origin]
    for override in sorted(overrides):
        key, _, value = override.partition("=")
        if not any(key == name or key.startswith(f"{name}.") for name in UNNAMED):
            parts.append(f"{key.rpartition('.')[2]}{value}")
    name = UNFIT.sub("-", "-".join([*parts, *([trial] if trial else [])])).strip("-._")
    return name or AUTO


def _value(key: str, values: dict, environment: Mapping[str, str], text: str) -> str:
    if re.fullmatch(r"[A-Z_][A-Z0-9_]*", key):
        if key not in environment:
            raise InputError(f"{text!r}: the environment has no variable {key}; set it or leave ${{{key}}} out")
        return environment[key]
    node: Any = values
    for part in key.split("."):
        if isinstance(node, list):
            node = dict(enumerate(node)).get(int(part)) if part.isdigit() else None
        else:
            node = node.get(part) if isinstance(node, dict) else None
    if node is None or isinstance(node, (dict, list)):
        raise InputError(f"{text!r}: the configuration has no value {key!r}; give a key such as training.schedule.lr")
    return str(node)


def _texts(node: Any) -> list[str]:
    if isinstance(node, str):
        return [node]
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [text for part in inner for text in _texts(part)]


def _mapped(node: Any, replace: Callable[[str], str]) -> Any:
    if isinstance(node, str):
        return replace(node)
    if isinstance(node, dict):
        return {key: _mapped(value, replace) for key, value in node.items()}
    return [_mapped(value, replace) for value in node] if isinstance(node, list) else node
