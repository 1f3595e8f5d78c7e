"""What the command line says of task results, and what a file says before it is completed."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from emergence_train.analysis.logs import columns_of
from emergence_train.analysis.logs.names import NAMES as LOGGED
from emergence_train.analysis.logs.numbers import in_full
from emergence_train.errors import InputError
from emergence_train.recorder.schemas import EVALUATIONS, INTEGER, REAL, TASK_DIGEST, TEXT

OPTIONAL = tuple(dict(EVALUATIONS.extra))
# What parts runs into families
OF_RUNS = tuple(name for name, kind in EVALUATIONS.extra if kind == TEXT and name != TASK_DIGEST)
NUMERIC = tuple(
    name for name, kind in (EVALUATIONS.columns | dict(EVALUATIONS.extra)).items() if kind in (INTEGER, REAL)
)
TOKENS_OF = "tokens tokens_seen trained_tokens n_tokens total_tokens tokens_trained"
# And in logs; of results "num_tokens" may be those of the task's texts
LOGGED_TOKENS = " ".join(name for name in LOGGED["tokens"].split() if name not in ("num_tokens", *TOKENS_OF.split()))
# Ours, and what others call them, the likeliest first; words joined by underscores.
NAMES = {
    "run": "run model model_name model_path model_id run_name",
    "params": "params n_params num_params parameters non_embedding_params model_num_parameters model_size size",
    "step": "step _step model_step global_step train_step iteration checkpoint_step revision checkpoint ckpt",
    "tokens": f"{TOKENS_OF} {LOGGED_TOKENS}",
    "loss": "loss eval_loss val_loss validation_loss c4_loss iid_loss lm_loss",
    "task": "task tasks task_name benchmark dataset eval eval_name scenario",
    "metric": "metric metric_name measure",
    "value": "value score result metric_value primary_score",
    "stderr": "stderr std_err standard_error",
    "items": "items num_instances n_samples num_samples n n_items",
    "chance": "chance random_baseline baseline random",
    "higher_is_better": "higher_is_better",
    **{name: name for name in OPTIONAL},
}
QUANTITIES = tuple(NAMES)
NUMBER = r"\d+(?:\.\d+)?"
# In the name of a model, a revision or a directory: step1000, ckpt_1.5k, step1000-tokens4B; 70m and 1.4b are sizes
STEPS = rf"(?:{NUMBER}k|\d(?:\.\d+)?m)(?![a-z0-9])|\d+(?![\d.]*[bm](?![a-z]))(?!\d)"
STEP = re.compile(rf"(?:steps?|checkpoint|iter(?:ation)?|ckpt)[-_= ]?({STEPS})", re.IGNORECASE)
TOKENS = re.compile(rf"tokens[-_=]?({NUMBER}[bmt])", re.IGNORECASE)
SIZE = re.compile(rf"(?<![a-z0-9.])({NUMBER}[kmb])(?![a-z0-9])", re.IGNORECASE)
BEHIND = re.compile(  # tokens without the word: 1.1B-step-50K-105b
    rf"(?P<place>{SIZE.pattern}.*{STEP.pattern})-(?P<tokens>{NUMBER}[bt])(?![a-z0-9])", re.IGNORECASE
)
SEPARATORS = r"[-_@.:=()\[\]\s]*"
# What a directory of a checkpoint is called beside its step, and what holds it, whoever's model it is
NO_MODEL = re.compile(
    rf"(?:{SEPARATORS}(?:hf|hugging_?face|transformers|pytorch|safetensors|converted|export(ed)?|(un)?sharded|models?|weights"
    rf"|checkpoints?|ckpts?|global|train|epoch[-_=]?\d*|stage[-_=]?\d*|final|latest|last|best)(?![a-z]))*{SEPARATORS}",
    re.IGNORECASE,
)


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
    """run, step, tokens and params as far as a model's name or path and its revision say them; params by its size's name.

    The run is the last part of the path that is more than a step and what checkpoints are called, without the step.
    """
    parts = [BEHIND.sub(r"\g<place>-tokens\g<tokens>", part) for part in model.split("/") if part]
    bare = [_without_step(part) for part in parts]
    own = next((k for k in reversed(range(len(parts))) if not NO_MODEL.fullmatch(bare[k])), 0)
    names = [*parts[own:], revision or ""]
    step = next(filter(None, map(STEP.search, reversed(names))), None)
    tokens = next(filter(None, map(TOKENS.search, reversed(names))), None)
    run = next((name for name in reversed(bare[: own + 1]) if name), None)
    size = SIZE.search(run or "")
    return {
        "run": run,
        "step": round(in_full(step[1])) if step else None,
        "tokens": round(in_full(tokens[1])) if tokens else None,
        "params": round(in_full(size[1])) if size else None,
    }


def place_of_results(model: str, revision: str | None, folder: Path) -> dict:
    """`place_of`; where the model says no step, the directory of its results may.

    That then says the run too where the model is a path on a disk, as "./current", unless its name has a size.
    """
    place, own = place_of(model, revision), place_of(str(folder.resolve()))
    if place["step"] is not None or own["step"] is None:
        return place
    is_path = model.startswith((".", "/", "~")) or model.count("/") > 1
    named = place["params"] is not None or (own["params"] is None and not is_path)
    known = {
        name: value for name, value in own.items() if value is not None and not (named and name in ("run", "params"))
    }
    return place | known


def _without_step(name: str) -> str:
    shorter = name
    for named in (STEP, TOKENS):
        shorter = re.sub(rf"{SEPARATORS}{named.pattern}", "", shorter, flags=re.IGNORECASE)
    return name if shorter == name else re.sub(rf"^{SEPARATORS}|{SEPARATORS}$", "", shorter)


def step_of(name: str) -> int | None:
    """The step that a name is and nothing else: step1000, ckpt-1.5k or 1000."""
    match = STEP.fullmatch(name) or re.fullmatch(r"(\d+)", name)
    return round(in_full(match[1])) if match else None
