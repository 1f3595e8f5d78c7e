"""What differs between runs: the keys of their configurations that are not the same in all of them, and what they began from."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from emergence_train.errors import InputError
from emergence_train.input_files import read_text
from emergence_train.recorder.naming import data_digest, display_names

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
# What people change comes first, then the rest
FIRST = ("model", "training.schedule", "training", "from", "seed", "data")
NOTHING = "nothing"  # of a configuration without the key, in a sentence
MISSING = "-"  # of a run without the key, or without a configuration


def differences(runs: list[Path]) -> list[dict[str, Any]]:
    """For each run its values of the keys that differ, under names as short as tells them apart (`lr`, `model.width`). A key that
    a run does not have is no difference: it has the default. `from` is the state of another run that it began from."""
    return _differing(_trees(runs))


def differences_by_origin(runs: list[Path]) -> list[dict[str, Any]]:
    """`differences` of the runs that were trained here, and apart from them of imported models: beside a model of another
    program everything is different, which hides what was changed."""
    trees = _trees(runs)
    imported = [*map(_is_imported, trees)]
    parts = {kind: iter(_differing([t for t, i in zip(trees, imported) if i is kind])) for kind in (False, True)}
    return [next(parts[kind]) for kind in imported]


def _trees(runs: list[Path]) -> list[dict[str, Any]]:
    """The runs' configurations, and under `from` their parents."""
    trees = [flat(read_config(run)) for run in runs]
    for tree, parent in zip(trees, begun_from(runs)):
        if any(tree):
            tree["from"] = "scratch" if parent == MISSING and not _is_imported(tree) else parent
    return trees


def _is_imported(tree: dict[str, Any]) -> bool:
    return any(key.startswith("imported.") for key in tree)


def begun_from(runs: list[Path]) -> list[str]:
    """What each run began from: run@step, and whether its rate had decayed by then; MISSING where from nothing."""
    parents = [_parent(run) for run in runs]
    places = list(dict.fromkeys(parent[0] for parent in parents if parent is not None))
    names = dict(zip(places, display_names([(place.name, place) for place in places])))
    return [MISSING if parent is None else f"{names[parent[0]]}@{parent[1]}{_decayed(*parent)}" for parent in parents]


def _parent(run: Path) -> tuple[Path, int, int] | None:
    """Directory, step and tokens of the state that a run began from, by its parent.json; a parent that was moved with it is
    beside it."""
    try:
        parent = json.loads(read_text(run / "parent.json"))
        place, step, tokens = Path(parent["path"]), int(parent["step"]), int(parent.get("tokens") or 0)
    except (InputError, OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    beside = run.resolve().parent / place.name
    return (beside if beside.is_dir() and not place.is_dir() else place), step, tokens


def _decayed(run: Path, step: int, tokens: int) -> str:
    tree = flat(read_config(run))
    kind, total, decay = (tree.get(f"training.{key}") for key in ("schedule.kind", "tokens", "schedule.decay_tokens"))
    in_decay = isinstance(total, int) and isinstance(decay, int) and tokens > total - decay > 0
    return " (decayed)" if kind in ("cosine", "linear") or (kind == "wsd" and in_decay) else ""


def _differing(trees: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The values of each tree of the keys that differ between them, under short names."""
    differing = _differing_keys(trees)
    names = dict(zip(differing, _short_names(differing)))
    return [{names[key]: tree.get(key, MISSING) for key in differing} for tree in trees]


def _differing_keys(trees: list[dict[str, Any]]) -> list[str]:
    keys = sorted({key for tree in trees for key in tree if not within(key, OF_NO_RUN)}, key=_place)
    return [key for key in keys if len({repr(tree[key]) for tree in trees if key in tree}) > 1]


def other_than(run: Path, other: Path, sections: tuple[str, ...], seeds: bool = True) -> list[str]:
    """The keys outside `sections` that differ between two runs and may change what is learned, `--from` and the data among them;
    without `seeds`, those of the runs and of what they began from do not count."""
    trees = [flat(read_config(each)) | _origin(each, seeds) for each in (run, other)]
    sections = (*VOLATILE, *sections, "name", "checkpoints", "training.compile", "training.cuda_graphs")
    return [key for key in _differing_keys(trees) if not within(key, sections) and (seeds or not _is_seed(key))]


def _origin(run: Path, seeds: bool) -> dict[str, Any]:
    """The state that a run began from, without `seeds` as what was trained until then, and the data, where they are known."""
    place, step, _ = _parent(run) or (None, None, None)
    digest = data_digest(run)
    start = (place if seeds or place is None else _draw(place)[0] or place, step)
    return {"--from": start} | ({} if digest is None else {"the prepared data": digest})


def _is_seed(key: str) -> bool:
    return key.rpartition(".")[2] == "seed"


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
    """The runs' numbers, together where their configurations, data and parents differ by nothing but seeds. A run without a
    configuration is alone, as nothing is known of it, and so is one whose seeds another has: it repeats a draw."""
    groups: dict[object, list[int]] = {}
    drawn = set()
    for number, run in enumerate(runs):
        settings, seeds = _draw(run)
        alone = not settings or (settings, seeds) in drawn
        drawn.add((settings, seeds))
        groups.setdefault(number if alone else settings, []).append(number)
    return list(groups.values())


def repeats(runs: list[Path]) -> bool:
    """Whether the runs are all of one configuration, data and parent, their seeds too."""
    draws = {_draw(run) for run in runs}
    return len(draws) == 1 and draws.pop()[0] != ""


def _draw(run: Path, generations: int = 8) -> tuple[str, str]:
    """(what was trained, "" where there is no configuration; its seeds), of the run and those that it began from."""
    tree = {key: value for key, value in flat(read_config(run)).items() if key and not within(key, OF_NO_RUN)}
    if not tree:
        return "", ""
    seeds = {key for key in tree if _is_seed(key)}
    settings = [(key, value) for key, value in tree.items() if key not in seeds]
    settings.append(("data", data_digest(run)))
    drawn = [(key, tree[key]) for key in seeds]
    if (parent := _parent(run)) is not None and generations:
        place, step, _ = parent
        known = _draw(place, generations - 1)
        settings.append(("from", (step, known[0] or str(place))))
        drawn.append(("from", known[1]))
    return repr(sorted(settings, key=str)), repr(sorted(drawn, key=str))


def read_config(run: Path) -> Any:
    """A run's config.yaml, unchecked: whatever YAML is in it; {} where there is none that can be read."""
    try:
        return yaml.load(read_text(run / "config.yaml"), Loader)
    except (InputError, OSError, ValueError, yaml.YAMLError):
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
