"""What the command line says of task results, and what a file says before it is completed."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from emergence_train.analysis.logs import columns_of
from emergence_train.analysis.logs.numbers import SI
from emergence_train.errors import InputError

# Ours, and what others call them, the likeliest first; words joined by underscores.
NAMES = {
    "run": "run model model_name model_path model_id run_name",
    "params": "params n_params num_params parameters non_embedding_params model_num_parameters model_size size",
    "step": "step model_step global_step train_step iteration checkpoint_step",
    "tokens": "tokens tokens_seen trained_tokens n_tokens total_tokens tokens_trained",
    "loss": "loss eval_loss val_loss validation_loss c4_loss iid_loss lm_loss",
    "task": "task tasks task_name benchmark dataset eval eval_name scenario",
    "metric": "metric metric_name measure",
    "value": "value score result metric_value primary_score",
    "stderr": "stderr std_err standard_error",
    "items": "items num_instances n_samples num_samples n n_items",
    "chance": "chance random_baseline baseline random",
    "higher_is_better": "higher_is_better",
}
QUANTITIES = tuple(NAMES)
STEP = re.compile(r"(?:step|checkpoint|iter|ckpt)[-_]?0*(\d+)", re.IGNORECASE)
TOKENS = re.compile(r"tokens(\d+(?:\.\d+)?)([BMT])", re.IGNORECASE)  # in the name of a revision: step1000-tokens4B
SIZE = re.compile(
    r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([kmb])(?![a-z0-9])", re.IGNORECASE
)  # in the name of a model: 70m, 1.4b


@dataclass(frozen=True)
class ScoreOptions:
    """What the command line says: the format, and what the files leave out.

    params: by run; "" is that of every run. elsewhere: runs among them that the results may lack. loss: a log of losses by
    step, or TASK/METRIC of the results.
    """

    format: str = "auto"
    run: str | None = None
    params: Mapping[str, int] = field(default_factory=dict)
    tokens_per_step: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    loss: str | None = None
    elsewhere: frozenset[str] = frozenset()

    @property
    def given(self) -> bool:
        """Whether the command line says anything of the results; runs elsewhere are named by its other files."""
        return replace(self, elsewhere=frozenset()) != ScoreOptions()


@dataclass(frozen=True)
class Scores:
    """Rows of task, metric, value and what else is known; NaN where a file does not say it. `note`: how it was read."""

    path: Path
    rows: pd.DataFrame
    note: str


@dataclass(frozen=True)
class Format:
    """A kind of results. `takes` looks at a file; `columns` are those of a table, none of another file."""

    name: str
    takes: Callable[[Path], bool]
    read: Callable[[Path, ScoreOptions], list[Scores]]
    columns: Callable[[Path], list[str]] = lambda path: []


def options_of(
    format: str,
    run: str | None,
    params: list[str],
    tokens_per_step: int | None,
    columns: list[str],
    loss: str | None,
) -> ScoreOptions:
    """ScoreOptions from the command line's words. Raises InputError."""
    known = ("auto", "evaluations", "lm-eval", "lighteval", "olmes", "helm", "csv")
    if format not in known:
        raise InputError(f"--format {format}: unknown; choose {', '.join(known)}")
    named = columns_of(columns, QUANTITIES, "value=accuracy")
    sizes = {}
    for text in params:
        name, _, number = text.rpartition("=")
        try:
            sizes[name] = int(float(number))
        except ValueError:
            raise InputError(f"--params {text}: write it as N or RUN=N, with N a number") from None
    return ScoreOptions(format, run, sizes, tokens_per_step, named, loss)


def place_of(model: str, revision: str | None = None) -> dict:
    """run, step, tokens and params as far as a model's name or path and its revision say them; params by its size's name."""
    parts = [part for part in model.rstrip("/").split("/") if part]
    name = revision or (parts[-1] if parts else "")
    step, tokens = STEP.search(name), TOKENS.search(name)
    run = "/".join(parts[:-1][-1:]) if step and not revision and len(parts) > 1 else "/".join(parts[-1:])
    if step and run == name and not revision:  # the model's name without it
        run = re.sub(r"^[-_@.]+|[-_@.]+$", "", re.sub("--+", "-", TOKENS.sub("", name.replace(step[0], "")))) or run
    size = SIZE.search(run)
    return {
        "run": run or None,
        "step": int(step[1]) if step else None,
        "tokens": int(float(tokens[1]) * SI[tokens[2].upper()]) if tokens else None,
        "params": int(float(size[1]) * SI[size[2].upper()]) if size else None,
    }
