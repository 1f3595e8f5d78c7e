"""Families: runs whose losses compare, by what the tables say of tokenizer and data, else by the runs' names.

Columns decide where there are any: `vocabulary` (or the Parquet metadata of that name), `data` (run directories know theirs) and
`family`. Every row of one combination is one family, whatever its run is called. Without them a run's name decides, by the words
that are left once sizes, token multipliers, shapes, seeds, optimizers and reruns are taken out of it.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from emergence_train.analysis.emergence.result import FamilyResult
from emergence_train.recorder import tables
from emergence_train.recorder.naming import data_digest

DATA = "data"  # column: a name or digest of the prepared data, with the validation text that the losses are of
COLUMNS = {tables.VOCABULARY: "vocabularies", DATA: "data", "family": "families"}
POOLED = "a column vocabulary or family with one value pools them (of other programs' results by --column family=NAME)"
NUMBER = r"\d+(\.\d+)?"
SIZE = re.compile(rf"(size|params?|n)?{NUMBER}[kmbt]\d*")  # 70m, 1.4b, 1b4
# Parts of a name that say nothing of tokenizer or data
NEUTRAL = re.compile(
    rf"{NUMBER}(e\d*)?|{NUMBER}x(\d+|c|chinchilla)?|{NUMBER}(tpp|tok|tokens|steps?|epochs?)|\d+[lhdw]|"
    rf"(d|l|h|w|n|kv|dim|depth|width|layers?|heads?|hidden|embd?|ffn|ctx|seq|bs|batch|lr|wd|beta|warmup|tokens?|steps?|ckpt|"
    rf"checkpoint|epoch|iter|seed|s|run|rerun|retry|rep|trial|v|ver|version|chinchilla|mup)({NUMBER}(e\d*)?)?|"
    "tiny|nano|micro|mini|small|base|medium|large|x+l|huge|size|params?|model|ladder|final|last|latest|main|copy|redo|repeat|"
    "again|restart(ed)?|resumed?|fixed|new|old|adam|adamw|muon|soap|shampoo|lion|sgd|cosine|wsd|linear|constant|const|"
    "decay(ed)?|anneal(ed)?|cooldown"
)


@dataclass(frozen=True)
class Families:
    """A family's name for each row, what decided it, and notes."""

    names: pd.Series
    decided_by: str
    notes: tuple[str, ...] = ()

    def results(self, frame: pd.DataFrame) -> tuple[FamilyResult, ...]:
        groups = frame.groupby(self.names, sort=True)
        return tuple(
            FamilyResult(
                family=str(name),
                decided_by=self.decided_by,
                runs=tuple(sorted(map(str, rows["run"].unique()))),
                sizes=int(rows["params"].nunique()),
            )
            for name, rows in groups
        )


def families(frame: pd.DataFrame) -> Families:
    """The families of the evaluations in `frame`."""
    columns = [name for name in COLUMNS if name in frame and (frame[name].fillna("").astype(str) != "").any()]
    return _by_columns(frame, columns) if columns else _by_names(frame)


def with_data(frame: pd.DataFrame, paths: Iterable[str | Path], shown: Mapping[Path, str]) -> pd.DataFrame:
    """The rows with the column `data` where run directories state the digest of theirs and the table has no such column."""
    digests = {
        shown[Path(path)]: digest for path in paths if Path(path) in shown and (digest := data_digest(Path(path)))
    }
    if not digests or DATA in frame:
        return frame
    return frame.assign(**{DATA: frame["run"].map(digests).fillna("")})


def _by_columns(frame: pd.DataFrame, columns: list[str]) -> Families:
    values = {name: frame[name].fillna("").astype(str) for name in columns}
    # Runs without a digest may be of the same data as the others, so an empty one separates nothing.
    differ = [name for name in columns if values[name][(values[name] != "") | (name != DATA)].nunique() > 1]
    decided = ", ".join(differ or columns)
    if not differ:
        named = values[columns[0]]
        return Families(named.where(named != "", named.max()), decided)
    names = values[differ[0]].replace("", "unknown")
    for name in differ[1:]:
        names = names + ":" + values[name].replace("", "unknown")
    notes = []
    for name in differ:
        known = sorted(values[name].unique())
        notes.append(
            f"runs of different {COLUMNS[name]} ({', '.join(value or 'unknown' for value in known)}): their losses in nats per "
            f"token are not comparable, so each is analysed apart and none is pooled; rename a column {name} that "
            "says something else"
        )
        if "" in known:
            first = frame["run"][values[name] == ""].iloc[0]
            notes.append(f"run {first!r} and others have no {name}: analysed apart as the family 'unknown'")
    return Families(names, decided, tuple(notes))


def _by_names(frame: pd.DataFrame) -> Families:
    runs = frame.drop_duplicates("run").set_index("run")["params"]
    ladders: dict[tuple[str, ...], set[int]] = defaultdict(set)
    stems = {str(run): words(str(run)) for run in runs.index}
    for run, stem in stems.items():
        ladders[stem].add(int(runs[run]))
    joined = _join(ladders)
    names = {run: "-".join(joined[stem]) for run, stem in stems.items()}
    count = len(set(names.values()))
    if count > 1 and any(len(sizes) > 1 for sizes in ladders.values()) and any(map(_has_size, stems)):
        shown = sorted(name or "unnamed" for name in set(names.values()))
        note = (
            f"no column says which runs share tokenizer and data; by their names these are {count} families "
            f"({', '.join(shown[:8])}{', ...' if count > 8 else ''}), analysed apart; {POOLED}"
        )
        return Families(frame["run"].astype(str).map(names).replace("", "unnamed"), "names", (note,))
    note = "no column says whether the runs share tokenizer and validation text; they are taken to (give vocabulary or family)"
    return Families(pd.Series("", index=frame.index), "assumed", (note,) if len(runs) > 1 else ())


def _parts(run: str) -> list[str]:
    return [part.strip(".") for part in re.split(r"[-_/\\\s:=,+()@]+", run.lower()) if part.strip(".")]


def _has_size(run: str) -> bool:
    return any(SIZE.fullmatch(part) for part in _parts(run))


def words(run: str) -> tuple[str, ...]:
    """The words of a run's name that may name tokenizer or data: pythia of pythia-1.4b-seed3, none of 190M-0.5xC-rerun.

    A whole number right after such a word is a version of it: llama-2-7b is not llama-3-8b.
    """
    kept: list[str] = []
    follows = False
    for part in _parts(run):
        version = follows and re.fullmatch(r"\d\d?", part) is not None
        follows = version or not (SIZE.fullmatch(part) or NEUTRAL.fullmatch(part))
        kept += [part] if follows else []
    return tuple(kept)


def _join(ladders: Mapping[tuple[str, ...], set[int]]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """The family of each stem. A stem with more words continues the ladder of one with fewer, unless it is a ladder of its own:
    several sizes, some of which the other has too (c4-open_lm-7b continues c4-d=512; pythia-deduped is not pythia)."""
    family: dict[tuple[str, ...], tuple[str, ...]] = {}
    for stem in sorted(ladders, key=lambda stem: (len(stem), stem)):
        wider = [
            other
            for other in family
            if other
            and family[other] == other
            and set(other) < set(stem)
            and len(ladders[other]) > 1
            and (len(ladders[stem]) == 1 or not ladders[other] & ladders[stem])
        ]
        family[stem] = max(wider, key=len) if wider else stem
    return family
