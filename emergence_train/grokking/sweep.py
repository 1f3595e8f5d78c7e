"""A sweep: model sizes x shares of the data x weight decays x seeds as one YAML file, and the runs that it stands for."""

import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from emergence_train import config_tree
from emergence_train.config_problem import validated
from emergence_train.errors import InputError
from emergence_train.grokking.mlp import Mlp
from emergence_train.grokking.tasks import Task
from emergence_train.grokking.transformer import Transformer
from emergence_train.section import NAME, Section

NUMBERS = (
    1  # raise it with a change that gives the same sweep other numbers: what was trained before is then trained again
)
Model = Annotated[Mlp | Transformer, Field(discriminator="kind")]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Decay = Annotated[float, Field(ge=0)]


class Training(Section):
    """AdamW with decoupled weight decay on every parameter, as in arXiv 2201.02177."""

    updates: int = Field(ge=1, description="the budget: a run that has not settled is censored there")
    lr: float = Field(default=1e-3, gt=0, description="learning rate, constant after the warm-up")
    warmup: int = Field(default=10, ge=0, description="updates of linear warm-up")
    betas: tuple[float, float] = Field(default=(0.9, 0.98), description="decay rates of AdamW's two moments")
    eps: float = Field(default=1e-8, gt=0, description="of AdamW")
    batch: int | None = Field(default=None, ge=1, description="questions an update; None: all that are trained on")
    evaluate_every: int = Field(default=25, ge=1, description="updates between two measurements")
    settle: int | None = Field(
        default=500,
        ge=1,
        description="a run ends after so many updates with both accuracies at 1; None: never before the budget",
    )

    @model_validator(mode="after")
    def _betas(self) -> "Training":
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas lie in [0, 1); set them so")
        return self


class Sweep(Section):
    name: str = Field(pattern=NAME, description="name of the sweep")
    task: Task = Field(description="questions and answers")
    models: dict[Annotated[str, Field(pattern=NAME)], Model] = Field(min_length=1, description="sizes, by their names")
    fractions: list[Fraction] = Field(min_length=1, description="shares of the questions that are trained on")
    weight_decays: list[Decay] = Field(
        default=[1.0], min_length=1, description="weight decays, times the learning rate"
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default=[1], min_length=1, description="seeds")
    training: Training = Field(description="how each run is trained")
    stack: int = Field(default=64, ge=1, description="runs that are trained at once, at most")
    device: Literal["cpu", "cuda"] = Field(
        default="cpu", description="where the stacks are trained; cpu: one on each CPU"
    )

    @model_validator(mode="after")
    def _each_once(self) -> "Sweep":
        for name in ("fractions", "weight_decays", "seeds"):
            values = [in_name(value) for value in getattr(self, name)]
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: a value is listed twice, to six digits; list each once")
        names: dict[Section, str] = {}
        for name, section in self.models.items():
            if (first := names.setdefault(section, name)) != name:
                raise ValueError(f"models: {first!r} and {name!r} are the same model, so the same runs; keep one")
        return self


def in_name(value: float) -> str:
    """A share, a weight decay or a seed as the name of a run has it."""
    return str(value) if isinstance(value, int) else f"{value:g}"


@dataclass(frozen=True)
class Run:
    """One model to train. Its weights, its share of the data and its order of questions are drawn from its key, so runs are
    independent of each other, and of who else is trained."""

    model: str  # its name
    section: Model
    fraction: float
    weight_decay: float
    seed: int
    trained_on: int  # questions

    @property
    def name(self) -> str:
        fraction, decay, seed = map(in_name, (self.fraction, self.weight_decay, self.seed))
        return f"{self.model}-f{fraction}-d{decay}-s{seed}"

    @property
    def entropy(self) -> list[int]:
        """For generators of random numbers: the seed, and the run's place in the sweep."""
        text = f"{self.section.model_dump_json()} {self.trained_on} {self.weight_decay!r}"
        return [self.seed, int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")]


@dataclass(frozen=True)
class SweepPlan:
    """A sweep's file, its runs, and what decides the table that they are trained on (tasks.identity)."""

    path: Path
    sweep: Sweep
    runs: tuple[Run, ...]
    task: dict[str, Any]

    def digest(self, run: Run) -> str:
        """Of all that decides a run's numbers: its name in the store."""
        settings = {
            "numbers": NUMBERS,
            "task": self.task,
            "training": self.sweep.training.model_dump(),
            "entropy": run.entropy,
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def read(path: str | Path) -> Sweep:
    """The sweep of a file.

    Raises:
        InputError: a wrong key or value, by its place.
    """
    return validated(Sweep, config_tree.read(Path(path)), path, "configs/grok")


def runs_of(sweep: Sweep, questions: int, path: str | Path = "sweep") -> tuple[Run, ...]:
    """Every run of a sweep over a table of so many questions, smaller shares first; `path` is its file, for errors.

    Raises:
        InputError: a share that leaves nothing to train on or nothing held out, or two that are one number of questions: their
            runs would be the same ones.
    """
    shares: dict[int, float] = {}  # by questions trained on
    for fraction in sweep.fractions:
        trained_on = round(fraction * questions)
        if not 0 < trained_on < questions:
            raise InputError(
                f"{path}: fractions: {fraction:g} of {questions} questions leaves none to train on or to hold out; "
                "choose another"
            )
        if (first := shares.setdefault(trained_on, fraction)) != fraction:
            raise InputError(
                f"{path}: fractions: {first:g} and {fraction:g} are both {trained_on} of {questions} questions, so the same "
                "runs; keep one"
            )
    axes = itertools.product(sweep.models.items(), shares.items(), sweep.weight_decays, sweep.seeds)
    return tuple(
        Run(name, section, fraction, decay, seed, trained_on)
        for (name, section), (trained_on, fraction), decay, seed in axes
    )
