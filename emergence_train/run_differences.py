"""What differs between runs: the keys of their configurations that are not the same in all of them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from emergence_train.input_files import read_text

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml is
# They say nothing about the result.
KEPT = ("save_state", "keep_last", "keep_every", "keep_best", "state_tokens")
OF_NO_RUN = (
    *("name", "out", "logging", "data.path", "data.workers", "training.threads", "training.profile", "samples"),
    *(f"checkpoints.{key}" for key in KEPT),
)
# What may change when a run resumes: nothing that changes a loss by more than rounding.
VOLATILE = (
    *("out", "logging", "faults", "tasks", "samples", "abilities", "data.path", "data.workers", "data.bad_rows"),
    *(
        "training.micro_batch",
        "training.sequence_parallel",
        "training.activation_checkpointing",
        "training.deterministic",
    ),
    *("training.threads", "training.profile", "training.zero_stage", "training.zero"),
    *(f"checkpoints.{key}" for key in (*KEPT, "asynchronous", "local_path")),
)
FIRST = ("model", "training.schedule", "training", "seed", "data")  # what people change comes first, then the rest
MISSING = "-"  # of a run without the key, or without a configuration


def differences(runs: list[Path]) -> list[dict[str, Any]]:
    """For each run its values of the keys that differ, under names as short as tells them apart (`lr`, `model.width`). A key that
    a run does not have is no difference: it has the default."""
    return _differing([flat(read_config(run)) for run in runs])


def differences_by_origin(runs: list[Path]) -> list[dict[str, Any]]:
    """`differences` of the runs that were trained here, and apart from them of imported models: beside a model of another
    program everything is different, which hides what was changed."""
    trees = [flat(read_config(run)) for run in runs]
    imported = [any(key.startswith("imported.") for key in tree) for tree in trees]
    parts = {kind: iter(_differing([t for t, i in zip(trees, imported) if i is kind])) for kind in (False, True)}
    return [next(parts[kind]) for kind in imported]


def _differing(trees: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The values of each tree of the keys that differ between them, under short names."""
    differing = _differing_keys(trees)
    names = dict(zip(differing, _short_names(differing)))
    return [{names[key]: tree.get(key, MISSING) for key in differing} for tree in trees]


def _differing_keys(trees: list[dict[str, Any]]) -> list[str]:
    keys = sorted({key for tree in trees for key in tree if not within(key, OF_NO_RUN)}, key=_place)
    return [key for key in keys if len({repr(tree[key]) for tree in trees if key in tree}) > 1]


def other_than(run: Path, other: Path, sections: tuple[str, ...]) -> list[str]:
    """The keys outside `sections` that differ between two runs and may change what is learned, `--from` among them."""
    trees = [flat(read_config(each)) | {"--from": _begun_from(each)} for each in (run, other)]
    sections = (*VOLATILE, *sections, "name", "checkpoints", "training.compile", "training.cuda_graphs")
    return [key for key in _differing_keys(trees) if not within(key, sections)]


def _begun_from(run: Path) -> tuple[Any, ...] | None:
    """Path and step of the state that a run began from, by its parent.json."""
    try:
        parent = json.loads(read_text(run / "parent.json"))
        return parent.get("path"), parent.get("step")
    except (OSError, ValueError, AttributeError):
        return None


def telling(values: list[dict[str, Any]]) -> list[str]:
    """Few keys that tell all of them apart, as far as keys can: each time the one that makes the most different, the first of
    equals."""
    every = list(dict.fromkeys(key for each in values for key in each))
    keys: list[str] = []

    def parts(chosen: list[str]) -> int:
        return len({tuple(str(each.get(key, MISSING)) for key in chosen) for each in values})

    while len(keys) < len(every) and parts(keys) < parts(every):
        keys.append(max(every, key=lambda key: parts([*keys, key])))
    return keys


def seed_groups(runs: list[Path]) -> list[list[int]]:
    """The runs' numbers, together where their configurations differ by nothing but seeds. A run without a configuration is
    alone: nothing is known of it."""
    groups: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        tree = {
            key: value
            for key, value in flat(read_config(run)).items()
            if key and not within(key, OF_NO_RUN) and key.rpartition(".")[2] != "seed"
        }
        groups.setdefault(repr(sorted(tree.items(), key=str)) if tree else f"run {number}", []).append(number)
    return list(groups.values())


def read_config(run: Path) -> Any:
    """A run's config.yaml, unchecked: whatever YAML is in it; {} where there is none that can be read."""
    try:
        return yaml.load(read_text(run / "config.yaml"), Loader)
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def within(key: str, sections: Iterable[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _place(key: str) -> tuple[int, str]:
    return next((k for k, section in enumerate(FIRST) if within(key, [section])), len(FIRST)), key


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value}; the entries of a list by their index."""
    if isinstance(tree, list) and tree and all(isinstance(item, dict) for item in tree):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict):
        return {prefix.rstrip("."): tree}
    return {key: value for name, node in tree.items() for key, value in flat(node, f"{prefix}{name}.").items()}


def _short_names(keys: list[str]) -> list[str]:
    """The shortest ends of the keys that are those of no other."""
    names = []
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-k:]) for k in range(1, len(parts) + 1)]
        others = [f".{other}" for other in keys if other != key]
        # an index or "kind" alone names nothing
        clear = (e for e in ends if not e[0].isdigit() and e != "kind")
        names.append(next((e for e in clear if not any(o.endswith(f".{e}") for o in others)), key))
    return names
