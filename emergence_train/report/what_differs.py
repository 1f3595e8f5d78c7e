"""The settings that are not the same in all runs: a table, and the choices of what colours the runs."""

import html
from collections.abc import Sequence

from emergence_train.report.collect import Run
from emergence_train.report.parts import table
from emergence_train.run_differences import differences, read_config, repeats

MOST_KEYS = 12  # columns of the table
SIZE = ("width", "layers", "ffn", "heads", "kv_heads", "head_dim")  # of a model; they mostly change together
Settings = dict[str, dict[str, str]]  # of each run, by its name


def settings(runs: Sequence[Run]) -> Settings:
    """Of each run its values of the settings that are not the same in all, of those that are one thing the first; nothing of a
    single run, or of tables."""
    named = _every(runs)
    first = [keys[0] for keys in together(named)]
    return {name: {key: each[key] for key in first} for name, each in named.items()}


def together(named: Settings) -> list[list[str]]:
    """The keys, those in one list that are one thing: numbers of a size, or seeds, of which each follows from each other one."""
    keys = list(next(iter(named.values()), {}))
    values = {key: tuple(each[key] for each in named.values()) for key in keys}
    bundles: list[list[str]] = []
    for key in keys:
        alike = (bundle for bundle in bundles if _one_kind(bundle[0], key) and _follow(values[bundle[0]], values[key]))
        if (bundle := next(alike, None)) is not None:
            bundle.append(key)
        else:
            bundles.append([key])
    return [sorted(bundle, key=lambda key: SIZE.index(_last(key)) if _last(key) in SIZE else 0) for bundle in bundles]


def shown(runs: Sequence[Run]) -> str:
    """A table of what differs, a column a thing: `width, ffn` where one follows from the other."""
    named = _every(runs)
    if not named:
        return ""
    bundles = together(named)
    if not bundles:
        same = " They are repeats of one seed." if repeats([run.directory for run in runs]) else ""
        return f"<h3>What differs</h3><p>Nothing in their configurations.{same}</p>"
    head = ["run", *(html.escape(", ".join(keys)) for keys in bundles[:MOST_KEYS])]
    rows = [
        [html.escape(name), *(html.escape(_cell(each, keys)) for keys in bundles[:MOST_KEYS])]
        for name, each in named.items()
    ]
    left = f"<p>{len(bundles) - MOST_KEYS} more settings differ.</p>" if len(bundles) > MOST_KEYS else ""
    return f"<h3>What differs</h3>{table(head, rows, 'What differs between the runs')}{left}"


def _every(runs: Sequence[Run]) -> Settings:
    if len(runs) < 2 or not any(read_config(run.directory) for run in runs):
        return {}
    values = differences([run.directory for run in runs])
    return {run.name: {key: str(value) for key, value in each.items()} for run, each in zip(runs, values)}


def _cell(values: dict[str, str], keys: list[str]) -> str:
    """The values of keys that are one thing; one value where they are all that one, as of seeds."""
    parts = [values[key] for key in keys]
    return parts[0] if _last(keys[0]) == "seed" and len(set(parts)) == 1 else ", ".join(parts)


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _one_kind(first: str, other: str) -> bool:
    return (_last(first) in SIZE and _last(other) in SIZE) or (_last(first) == _last(other) == "seed")


def _follow(first: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether each value of one goes with one value of the other."""
    return len(set(zip(first, other))) == len(set(first)) == len(set(other))
