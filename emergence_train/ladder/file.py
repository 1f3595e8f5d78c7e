"""A ladder: sizes x token budgets x schedules x seeds as one YAML file, and the runs that it stands for."""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from emergence_train import config as configs
from emergence_train import config_tree
from emergence_train.config import Config
from emergence_train.config_problem import validated
from emergence_train.errors import InputError
from emergence_train.input_files import read_text
from emergence_train.section import NAME, Section
from emergence_train.training.checkpoint_plan import Plan

Identity = tuple[str, int, str, int]  # of a run: size, budget (0: of all budgets), schedule, seed
PREFIXES = ((10**9, "b"), (10**6, "m"), (10**3, "k"))
INDEX = "ladder.json"  # in the ladder's directory: the runs, for the analyses, and what each name stands for
LOGS = "ladder-logs"  # likewise: output of the runs, and notes of their starts
LONGEST = 200  # characters of a run's name: it is a directory's and, with endings, a file's
OWN = {  # keys that a ladder gives every run, and what decides them
    "name": "the names of sizes and schedules",
    "out": "out",
    "seed": "seeds",
    "training.tokens": "tokens",
}


def _whole(value: Any) -> Any:
    """A number of tokens, as 67e9 too."""
    if isinstance(value, bool):
        raise ValueError(f"{value} is no number of tokens; give one")
    return int(value) if isinstance(value, float) and value.is_integer() else value


Tokens = Annotated[int, BeforeValidator(_whole), Field(ge=1)]
Name = Annotated[str, BeforeValidator(str), Field(pattern=NAME)]
Set = dict[str, Any]  # dotted keys of the configuration


class Size(Section):
    set: Set = Field(default={}, description="dotted keys of the configuration, as model.preset")
    tokens: list[Tokens] | None = Field(default=None, min_length=1, description="budgets; None: the ladder's")
    schedules: list[Name] | None = Field(default=None, min_length=1, description="some of the ladder's; None: all")
    gpus: int | None = Field(default=None, ge=1, description="GPUs of each run; None: the ladder's")


class Variant(Section):
    """A variant of the learning rate; with `after`, decays that branch from the runs of another one."""

    set: Set = Field(default={}, description="dotted keys of the configuration, as training.schedule.kind")
    after: str | None = Field(
        default=None, description="a stable schedule: each budget is a decay from its one run, by train --from"
    )
    share: float = Field(default=0.1, gt=0, lt=1, description="with after: of a budget, the decay's part at least")


class Slurm(Section):
    script: str = Field(default="slurm.sbatch", description="batch script, relative to the ladder's file")
    options: list[str] = Field(default=[], description="options of sbatch, for every run")
    arrays: bool = Field(default=True, description="runs with one request as a job array; false: a job each")
    at_once: int | None = Field(default=None, ge=1, description="runs of an array that Slurm starts at a time, at most")


class LadderFile(Section):
    name: str = Field(pattern=NAME, description="name of the ladder")
    config: str = Field(description="the configuration that all runs share, relative to the ladder's file")
    out: str | None = Field(default=None, description="directory of the runs; None: runs/NAME")
    set: Set = Field(default={}, description="dotted keys of the configuration, for every run")
    tokens: list[Tokens] | None = Field(default=None, min_length=1, description="token budgets of every size")
    seeds: list[int] = Field(default=[1], min_length=1, description="seeds")
    schedules: dict[Name, Variant] = Field(default={"": Variant()}, min_length=1, description="by their names")
    sizes: dict[Name, Size] = Field(min_length=1, description="by their names, smallest first")
    gpus: int | None = Field(default=None, ge=1, description="GPUs of each run; None: one where there are any")
    slurm: Slurm = Field(default=Slurm(), description="for --slurm")

    @model_validator(mode="after")
    def _fits_together(self) -> "LadderFile":
        for kind, names in (("sizes", self.sizes), ("schedules", self.schedules)):
            for first, second in itertools.combinations(names, 2):
                if first.casefold() == second.casefold():
                    raise ValueError(
                        f"{kind}.{second} and {first} differ in case alone, and some file systems take their runs for one; "
                        f"rename one"
                    )
        for name, size in self.sizes.items():
            if not (size.tokens or self.tokens):
                raise ValueError(f"sizes.{name} has no tokens; give them there or for the whole ladder")
            for chosen in size.schedules or ():
                if chosen not in self.schedules:
                    raise ValueError(f"sizes.{name}.schedules: {chosen!r} is not one of {', '.join(self.schedules)}")
                after = self.schedules[chosen].after
                if after is not None and after not in (size.schedules or ()):
                    raise ValueError(f"sizes.{name}.schedules: {chosen!r} branches from {after!r}; list that as well")
        for place, given in self.sets():
            for key in OWN.keys() & given.keys():
                raise ValueError(
                    f"{place}.{key} is the ladder's to give; leave it out, {OWN[key]} of the ladder says it"
                )
        for name, schedule in self.schedules.items():
            parent = self.schedules.get(schedule.after) if schedule.after is not None else Variant()
            if parent is None or parent.after is not None:
                known = [other for other, entry in self.schedules.items() if entry.after is None]
                raise ValueError(
                    f"schedules.{name}.after: {schedule.after!r} is no schedule that runs by itself; "
                    f"choose from {', '.join(known)}"
                )
        return self

    def sets(self, size: str | None = None, schedule: str | None = None) -> Iterator[tuple[str, Set]]:
        """Changes to the configuration and where the file has them: all, or those of a run, the strongest first."""
        for kind, entries, wanted in (("schedules", self.schedules, schedule), ("sizes", self.sizes, size)):
            for name, entry in entries.items():
                if wanted in (None, name):
                    yield f"{kind}.{name}.set", entry.set
        yield "set", self.set


@dataclass(frozen=True)
class Row:
    """A run of a ladder."""

    run: str
    out: str  # its parent directory, ${VARIABLES} replaced
    size: str
    tokens: int
    schedule: str
    seed: int
    overrides: tuple[str, ...]  # as on the command line
    gpus: int | None
    parent: str | None = None  # the run whose state it begins from
    parent_step: int = 0
    total_steps: int = 0
    threads: int | None = None  # on a CPU
    saves: bool = True  # a state at its end
    stable: bool = False  # decays branch from it: the run of all budgets

    @property
    def identity(self) -> Identity:
        return self.size, 0 if self.stable else self.tokens, self.schedule, self.seed


@dataclass(frozen=True)
class Ladder:
    """A ladder's file, and its runs in order: a parent before its children."""

    path: Path
    file: LadderFile
    rows: tuple[Row, ...]

    @property
    def out(self) -> Path:
        return Path(self.rows[0].out)

    @property
    def config(self) -> Path:
        return self.path.parent / self.file.config

    def directory(self, run: str) -> Path:
        return self.out / run

    def arguments(self, row: Row) -> list[str]:
        """Of `emergence-train`, for a row."""
        parent = ["--from", f"{self.directory(row.parent)}@{row.parent_step}"] if row.parent else []
        return ["train", str(self.config), *row.overrides, *parent]


def read(path: str | Path) -> Ladder:
    """The ladder of a file; every row's configuration is read, so that a wrong one is refused before the first starts."""
    path = Path(path)
    file = validated(LadderFile, config_tree.read(path), path, "configs/ladders")
    out = next(_rows(file, path, {})).out  # known from a configuration that was read
    rows = tuple(_rows(file, path, former_names(Path(out), file.name)))
    _check_names(path, rows)
    return Ladder(path, file, rows)


def former_names(out: Path, ladder: str) -> dict[str, Identity]:
    """What names of runs stand for, by the index of this ladder in its directory."""
    try:
        index = json.loads(read_text(out / INDEX))
        entries = index["identities"].items() if index["name"] == ladder else ()
        return {name: (str(s), int(t), str(v), int(seed)) for name, (s, t, v, seed) in entries if re.match(NAME, name)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}  # none, an earlier version's, or an edited one


def _check_names(path: Path, rows: tuple[Row, ...]) -> None:
    """Raise InputError where a run's directory would be another's, or the ladder's own."""
    rows_by_name: dict[str, Row] = {}
    for row in rows:
        if row.out != rows[0].out:
            raise InputError(
                f"{path}: out is {rows[0].out} for {rows[0].run} and {row.out} for {row.run}; give all runs one, without keys "
                f"of the configuration in it"
            )
        if row.run in (INDEX, LOGS):
            raise InputError(f"{path}: a run would be called {row.run}, as the ladder's own; rename sizes.{row.size}")
        if len(row.run) > LONGEST:
            raise InputError(
                f"{path}: a name of {len(row.run)} characters is too long; shorten sizes.{row.size[:40]}..."
            )
        other = rows_by_name.setdefault(row.run, row)
        if other.size != row.size:
            raise InputError(f"{path}: two runs are called {row.run}; rename sizes.{other.size} or sizes.{row.size}")
        if other is not row:
            raise InputError(f"{path}: two runs are called {row.run}; list each of tokens and seeds once")


def shown_tokens(tokens: int) -> str:
    """67b, 2.048m, 12288: exact."""
    for unit, letter in PREFIXES:
        if tokens >= unit and tokens % (unit // 1000) == 0:
            return f"{tokens / unit:g}{letter}" if float(f"{tokens / unit:g}") * unit == tokens else str(tokens)
    return str(tokens)


def _rows(file: LadderFile, path: Path, former: dict[str, Identity]) -> Iterator[Row]:
    """The runs; one whose identity has a name in `former` keeps it, whatever differs in the file now."""
    ordered = sorted(file.schedules.items(), key=lambda entry: entry[1].after is not None)
    branched = {schedule.after for schedule in file.schedules.values() if schedule.after is not None}
    names = {identity: name for name, identity in former.items()}
    for size, seed in itertools.product(file.sizes, file.seeds):
        chosen = file.sizes[size].schedules or list(file.schedules)
        plans: dict[str, tuple[str, Plan]] = {}  # of the stable runs
        budgets = file.sizes[size].tokens or file.tokens or []
        several = [len(values) > 1 for values in (budgets, file.schedules, file.seeds)]
        for schedule, entry in ((name, entry) for name, entry in ordered if name in chosen):
            stable = schedule in branched
            for tokens in [max(budgets)] if stable else budgets:
                identity = size, 0 if stable else tokens, schedule, seed
                name = names.get(identity) or _new_name(identity, several, former, entry.after is not None)
                yield _row(file, path, name, size, tokens, schedule, seed, stable, plans)


def _new_name(identity: Identity, several: list[bool], former: dict[str, Identity], decay: bool) -> str:
    """Called after what differs: budgets, schedules and seeds of which there are `several`, and what differs from a former run of
    that name. A run that is no decay is that run, with a higher budget."""
    name = _name(identity, several)
    theirs = former.get(name, identity)
    differs = [ours != other for ours, other in zip(identity[1:], theirs[1:])]
    return _name(identity, [a or b for a, b in zip(several, differs)]) if decay or any(differs[1:]) else name


def _name(identity: Identity, shown: list[bool]) -> str:
    """The size, and what is `shown` of budget, schedule and seed."""
    size, budget, schedule, seed = identity
    words = shown_tokens(budget) if budget else "", schedule, f"s{seed}"
    return "-".join([size, *(word for word, wanted in zip(words, shown) if wanted and word)])


def _row(
    file: LadderFile,
    path: Path,
    run: str,
    size: str,
    tokens: int,
    name: str,
    seed: int,
    stable: bool,
    plans: dict[str, tuple[str, Plan]],
) -> Row:
    """The run, its configuration read; `plans`: of the stable runs of its size and seed, to which it adds its own."""
    schedule, entry = file.schedules[name], file.sizes[size]
    values = file.set | entry.set | schedule.set
    values |= {"name": run, "out": file.out or f"runs/{file.name}", "seed": seed, "training.tokens": tokens}
    parent, step = None, 0
    if stable:
        values["checkpoints.save_state"] = "every"  # decays begin from them
    if schedule.after is not None:
        parent, plan = plans[schedule.after]
        step = _branch_step(plan, tokens, schedule, path, run)
        values["training.schedule.decay_tokens"] = tokens - step * plan.step_tokens
    config = _config_of(file, path, run, size, name, _as_overrides(values))
    values["out"] = config.out  # with what a variable is here, whatever it is where the run starts
    if stable and config.training.schedule.kind in ("cosine", "linear"):
        raise InputError(
            f"{path}: schedules.{name}: kind {config.training.schedule.kind} has lowered the rate where decays branch from it; "
            f"give it training.schedule.kind: constant under set"
        )
    planned = Plan(config.training, config.checkpoints, config.data.sequence)
    if stable:
        plans[name] = run, planned
    return Row(
        run,
        config.out,
        size,
        tokens,
        name,
        seed,
        _as_overrides(values),
        entry.gpus or file.gpus,
        parent,
        step,
        planned.total_steps,
        config.training.threads,
        config.checkpoints.save_state != "never",
        stable,
    )


def _as_overrides(values: Set) -> tuple[str, ...]:
    return tuple(f"{key}={json.dumps(value)}" for key, value in values.items())


def row_config(base: Path, overrides: tuple[str, ...]) -> Config:
    """The configuration of a row."""
    return configs.load(base, overrides)


def _config_of(file: LadderFile, path: Path, run: str, size: str, schedule: str, overrides: tuple[str, ...]) -> Config:
    """The configuration of a row; what is wrong with it is said of the place in the ladder's file where it is given."""
    base = path.parent / file.config
    if not base.is_file():
        raise InputError(f"{path}: config: no file {base}; give its path relative to the ladder's file")
    try:
        return row_config(base, overrides)
    except InputError as error:
        text = str(error)
        for place, given in file.sets(size, schedule):
            if key := next((key for key in given if text.startswith(f"{base}: {key}:")), None):
                raise InputError(f"{path}: {place}.{key}{text.removeprefix(f'{base}: {key}')}") from None
        raise InputError(f"{path}: {run}: {text}") from None


def _branch_step(plan: Plan, tokens: int, schedule: Variant, path: Path, run: str) -> int:
    """The last saved step of the stable run that leaves the decay its share of the budget."""
    latest = tokens * (1 - schedule.share) / plan.step_tokens
    steps = [step for step in plan.state_steps if step <= latest]
    if not steps:
        raise InputError(
            f"{path}: {run}: the stable run saves no state in the first {latest * plan.step_tokens:,.0f} tokens; lower "
            f"checkpoints.every_tokens, or raise the budget"
        )
    return max(steps)
