"""Tables of task results: a row a score, or a column a task (as OLMo's and HELM's); typeset ones and JSON too."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from emergence_train.analysis.logs import units
from emergence_train.analysis.logs.cells import ABSENT, header_of, read_table
from emergence_train.analysis.logs.encoded import suffix_of
from emergence_train.analysis.logs.names import plain
from emergence_train.analysis.logs.numbers import PERPLEXITY, ROLES, Role, scales_of
from emergence_train.analysis.scores import json_tables
from emergence_train.analysis.scores.options import (
    LOGGED_TOKENS,
    NAMES,
    NUMERIC,
    OF_RUNS,
    OPTIONAL,
    Format,
    ScoreOptions,
    Scores,
    place_of,
)
from emergence_train.analysis.scores.parts import SHOT, candidates
from emergence_train.analysis.scores.percents import MOST, SIGNED, in_one_unit, numbers, signed
from emergence_train.errors import InputError, listed
from emergence_train.recorder.schemas import EVALUATIONS, VOCABULARY
from emergence_train.recorder.table_files import vocabulary_of

METRIC = (
    r"acc|acc_norm|acc_raw|acc_per_char|acc_per_token|acc_uncond|accuracy|em|exact_match|quasi_exact_match|f1|pass@?1|len_norm|"
    r"bpb|bits_per_byte|ppl|(?:word_|byte_|token_)?perplexity|soft|soft_log|ce_loss|correct_prob|margin|mc1|mc2|"
    r"primary_score|score"
)
SECOND = "_v2"  # behind a metric that a harness came to compute in another way, and logs both
# OLMo-core's TASK (LABEL), with " v2" behind the label of SECOND
LABELS = {
    "accuracy": "acc",
    "length-normalized accuracy": "len_norm",
    "PMI-DC accuracy": "pmi_dc",
    "CE loss": "ce_loss",
    "BPB": "bpb",
    "soft loss": "soft",
    "log soft loss": "soft_log",
    "F1 score": "f1",
}
LABELLED = re.compile(rf"^(?P<task>.+) \((?P<label>{'|'.join(LABELS)})(?P<again> v2)?\)$")
# TASK/METRIC, TASK - METRIC (HELM), TASK_METRIC; what comes before the task (eval/downstream/) is left out
WIDE = [
    re.compile(rf"^(?:.*/)?(?P<task>[^/]+?){apart}(?P<metric>(?:{METRIC}|pmi_dc)(?:{SECOND})?)$", re.IGNORECASE)
    for apart in ("/", r"(?:\s+-\s+|[_ ])")
]
LOSSES = re.compile(
    rf"(?:ppl|.*perplexity|bpb|bits_per_byte|ce_loss)(?:{SECOND})?", re.IGNORECASE
)  # beside which a task's bare name is its accuracy
# Tasks that tables have a column of without naming a metric: accuracies of choices, and scores of generated answers
CHOICES = (
    r"hellaswag|arc_?(e|c|easy|challenge)|mmlu(_pro)?|openbookqa|obqa|sciq|race|piqa|winogrande|boolq|copa|csqa|commonsense_qa|"
    r"social_?iqa|siqa|ceval|cmmlu|storycloze"
)
BARE = re.compile(rf"^({CHOICES}|lambada(_openai)?|gsm8k|math|humaneval|mbpp|triviaqa|nq|drop|squad|bbh)$")
HELM_COLUMN = re.compile(r"^(?P<task>.+) - (?P<metric>.+)$")
HELM_MODEL = ("model/adapter", "model")
HELM_METRIC = {"em": "exact_match", "accuracy": "accuracy", "f1": "f1"}
# Words before a metric that are no task: "train/acc" is a column of a log
NO_TASK = re.compile(
    r"(train(ing)?|val(id|idation)?|eval(uation)?|test|dev|metrics?|results?|scores?|mean|average|avg|all|log|ln|loss|lm|mlm"
    r"|(next_|mean_)?token|top_?\d+|[/_])+"
)
REVISIONS = ("revision", "checkpoint", "ckpt")  # which may name no step
PLACE = ("run", "params", "step", "tokens", "loss", "chance", *OPTIONAL)
ERROR_OF = re.compile(r"[_ ](stderr|std_?err|se)$")


def _role_of(metric: str) -> Role:
    return "perplexity" if PERPLEXITY.search(metric) else "small"


def _known(cells: pd.Series) -> pd.Series:
    """Those that hold something."""
    return cells[cells.notna() & ~cells.astype(str).str.strip().str.lower().isin(ABSENT)]


def _left_out(frame: pd.DataFrame, columns: Iterable[str]) -> str:
    """What to say of cells that should be numbers and are none."""
    parts = []
    for name in columns:
        words = _known(frame[name])
        bad = words[numbers(words).isna()]
        if len(bad):
            parts.append(f"{len(bad)} of {name!r} (row {bad.index[0]}: {str(bad.iloc[0])[:30]!r})")
    return f"; left out, no numbers: {', '.join(parts)}" if parts else ""


def _recognised(columns: list[str], given: Mapping[str, str], path: Path) -> dict[str, str]:
    """Our columns as the table calls them."""
    called = {plain(units.without_brackets(column)): column for column in reversed(columns)}  # "Params (B)"
    called |= {plain(column): column for column in reversed(columns)}
    named = {
        ours: next((called[n] for n in names.split() if n in called and _is_of(ours, called[n])), None)
        for ours, names in NAMES.items()
    }
    for ours, name in given.items():
        if name not in columns:
            raise InputError(
                f"{path}: has no column {name!r} (it has {', '.join(map(str, columns[:12]))}); correct --column {ours}={name}"
            )
    return {ours: name for ours, name in {**named, **given}.items() if name is not None}


def _is_of(ours: str, column: str) -> bool:
    """Not "tokens (per GPU)"; an unknown unit of the loss has a note."""
    return ours == "loss" or not units.unknown_unit(ours, column)


def _columns(path: Path) -> list[str]:
    return json_tables.columns(path) if suffix_of(path) in json_tables.SUFFIXES else header_of(path)


def is_ours(columns: list[str]) -> bool:
    """Whether a table has the columns of evaluations by their own names, and no shots, which part tasks."""
    shots = any(SHOT.fullmatch(plain(name)) for name in columns)
    return {*EVALUATIONS.columns} - {*EVALUATIONS.optional} <= {*columns} and not shots


def _is_table(path: Path) -> bool:
    columns = _columns(path)
    known = _recognised(columns, {}, path)
    return ("task" in known and ("value" in known or bool(_metrics(columns)))) or bool(_wide(columns, known))


def _wide(columns: list[str], known: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Columns that are a task's metric: column to (task, metric)."""
    taken = set(known.values())
    texts = {column: _by_label(str(column).strip()) for column in columns if column not in taken}
    matches = {column: next(filter(None, (form.match(text) for form in WIDE)), None) for column, text in texts.items()}
    bare = {column: plain(column) for column in columns if column not in taken and BARE.match(plain(column))}
    named = {
        column: (match["task"], match["metric"])
        for column, match in matches.items()
        if match and not NO_TASK.fullmatch(match["task"].lower())
    }
    metrics = {task: "accuracy" if re.fullmatch(CHOICES, task) else "score" for task in bare.values()}
    scored = any(not LOSSES.fullmatch(metric) for _, metric in named.values())
    return named if scored else named | {column: (task, metrics[task]) for column, task in bare.items()}


def _by_label(column: str) -> str:
    """TASK/METRIC of TASK (LABEL)."""
    match = LABELLED.match(column)
    return f"{match['task']}/{LABELS[match['label']]}{SECOND if match['again'] else ''}" if match else column


def _metrics(columns: list[str]) -> list[str]:
    """Columns that are called as metrics are."""
    return [column for column in columns if re.fullmatch(METRIC, str(column).strip(), re.IGNORECASE)]


def _read_table(path: Path, options: ScoreOptions) -> list[Scores]:
    frame = _cells(path)
    columns = list(frame.columns)
    known, varying = _of_runs(frame, _recognised(columns, options.columns, path), options.columns)
    scores = _named_by_file(_of_columns(path, frame, known))
    return [replace(scores, note=scores.note + varying)]


def _of_runs(frame: pd.DataFrame, known: Mapping[str, str], given: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """-> (`known` without a family, data or vocabulary that differ within a run, as a task's family; what to say of them)."""
    runs = frame[known["run"]].astype(str) if "run" in known else pd.Series("", frame.index)
    varying = [
        ours
        for ours in OF_RUNS
        if ours in known and ours not in given and (_known(frame[known[ours]]).groupby(runs).nunique() > 1).any()
    ]
    note = "".join(
        f"; {known[ours]!r} is not taken for a {ours} of runs, it differs within a run (--column {ours}={known[ours]} takes it)"
        for ours in varying
    )
    known = {ours: name for ours, name in known.items() if ours not in varying}
    if "tokens" in known and "tokens" not in given and _is_budget(frame, known, runs):
        note += f"; {known['tokens']!r} is not taken for tokens, it is the same at every step (--column tokens={known['tokens']})"
        known.pop("tokens")
    return known, note


def _is_budget(frame: pd.DataFrame, known: Mapping[str, str], runs: pd.Series) -> bool:
    """Whether a column that logs call tokens is what runs are planned to see: the same at all of a run's steps."""
    if plain(known["tokens"]) not in LOGGED_TOKENS.split() or "step" not in known:
        return False
    counts = frame.groupby(runs)[[known["step"], known["tokens"]]].nunique()
    several = counts[known["step"]] > 1
    return bool(several.any() and (counts.loc[several, known["tokens"]] == 1).all())


def _of_columns(path: Path, frame: pd.DataFrame, known: dict[str, str]) -> Scores:
    columns = list(frame.columns)
    if "task" in known:  # tables to be read name a task once above its metrics
        frame[known["task"]] = frame[known["task"]].ffill()
    wide = {} if "task" in known and "value" in known else _wide(columns, known)
    if wide:
        for ours in ("task", "metric", "value"):
            known.pop(ours, None)
        return _melted(path, frame, known, wide)
    metrics = [column for column in _metrics(columns) if column != known.get("loss")]
    if "task" in known and "value" not in known and metrics:
        return _by_metric(path, frame, known, metrics)
    missing = [ours for ours in ("task", "value") if ours not in known]
    if missing:
        flags = " ".join(f"--column {ours}=NAME" for ours in missing)
        raise InputError(
            f"{path}: no column was recognised as {' or '.join(missing)} (it has {', '.join(map(str, columns[:12]))}); "
            f"give {flags}"
        )
    rows, extra = _typed(frame, known)
    if "metric" not in rows:
        rows["metric"] = "score"
    reading = ", ".join(f"{ours} from {name!r}" for ours, name in known.items())
    bad = _left_out(frame, [known[ours] for ours in NUMERIC if ours in rows and rows[ours].isna().any()])
    return _scores(path, rows, f"{path}: a row a score; {reading}{extra}{bad}", placed=not is_ours(columns))


def _cells(path: Path) -> pd.DataFrame:
    """A table's cells, with the vocabulary that a Parquet file's metadata name."""
    if suffix_of(path) in json_tables.SUFFIXES:
        return json_tables.frame(path)
    frame = read_table(path)
    if suffix_of(path) == ".parquet" and VOCABULARY not in frame and (vocabulary := vocabulary_of(path)):
        frame[VOCABULARY] = vocabulary
    return frame


def _named_by_file(scores: Scores) -> Scores:
    """With the step that a file or its directory is named after, and the run above it, where no column says them."""
    rows, path = scores.rows, scores.path.resolve()
    if "step" in rows or ("tokens" in rows and rows["tokens"].nunique() > 1):
        return scores
    way = path.parent / re.sub(r"(\.[A-Za-z]\w*)+$", "", path.name)  # but step1.5k.json is of step 1,500
    place = next((known for known in map(place_of, (str(way), str(path.parent))) if known["step"] is not None), None)
    if place is None:
        return scores
    named = {"step": place["step"], "tokens": place["tokens"], "run": place["run"], "params": place["params"]}
    rows = rows.assign(**{ours: value for ours, value in named.items() if ours not in rows and value is not None})
    return Scores(scores.path, rows, f"{scores.note}; step {place['step']} from its name")


def _typed(frame: pd.DataFrame, known: Mapping[str, str], scored: Iterable[str] = ()) -> tuple[pd.DataFrame, str]:
    """-> (our columns of the table, those of numbers as float64 and losses in nats; what to say of the losses).

    With the columns that are neither ours nor `scored`, behind OTHER.
    """
    columns = {
        ours: numbers(frame[n], ROLES.get(ours, "small")) if ours in NUMERIC else frame[n] for ours, n in known.items()
    }
    for ours in {"params", "step", "tokens"} & set(columns):
        columns[ours] *= scales_of(frame[known[ours]], known[ours])
    if "step" in known:
        names = frame[known["run"]].unique() if plain(known["step"]) in REVISIONS and "run" in known else ()
        if len(names) and all(place_of(str(name))["step"] is not None for name in names):
            columns["step"] = columns["step"] * np.nan  # hashes may be of digits alone
        _fill_steps(columns, frame[known["step"]])
    for ours in {"value", *MOST} & set(columns):
        columns[SIGNED.format(ours)] = signed(frame[known[ours]])
    columns |= candidates(frame, [*known.values(), *scored])
    extra = []
    for ours in {"loss", "unigram_loss"} & set(known):
        name = known[ours]
        unit = units.unit_of(name, remedy="")
        if unit == "perplexity":
            columns[ours] = numbers(frame[name], "perplexity")
        columns[ours] = units.to_nats(columns[ours], unit)
        if ours == "loss":
            extra += units.notes(name, unit, remedy="; a name with nats says otherwise")
            extra += units.few_nats(name, unit, columns[ours])
    return pd.DataFrame(columns, index=frame.index), "".join(f"; {note}" for note in extra)


def _fill_steps(columns: dict[str, pd.Series], cells: pd.Series) -> None:
    """Steps, and tokens where no column has them, of cells that name a checkpoint: "step1000", "stage1-step1000-tokens2B"."""
    words = cells[columns["step"].isna() & cells.notna()]
    places = pd.DataFrame([place_of(str(cell)) for cell in words], words.index, columns=["step", "tokens"])
    columns["step"] = columns["step"].fillna(places["step"].astype(float))
    if columns["step"].isna().all():  # "main": a file's or a model's name may say it
        del columns["step"]
    if places["tokens"].notna().any():
        columns.setdefault("tokens", places["tokens"].astype(float).reindex(cells.index))


def _scored(frame: pd.DataFrame, column: str, metric: str) -> tuple[dict[str, pd.Series], list[str]]:
    """-> (value and, where a column has it, stderr of a column of scores; the names of the columns of errors)."""
    columns = {"value": numbers(frame[column], _role_of(metric)), SIGNED.format("value"): signed(frame[column])}
    errors = [str(other) for other in frame if ERROR_OF.sub("", str(other)) == column != other][:1]
    for error in errors:
        columns |= {"stderr": numbers(frame[error]), SIGNED.format("stderr"): signed(frame[error])}
    return columns, errors


def _scores(path: Path, rows: pd.DataFrame, note: str, placed: bool = True) -> Scores:
    """`placed`: whether the runs' names may say step, tokens and size."""
    rows, extra = in_one_unit(path, rows)
    return Scores(path, _placed(rows) if placed else rows, note + extra)


def _by_metric(path: Path, frame: pd.DataFrame, known: Mapping[str, str], metrics: list[str]) -> Scores:
    """A row of each metric's column, for a table with a row a task."""
    known = {ours: name for ours, name in known.items() if name not in metrics}
    place, extra = _typed(frame, known, metrics)
    parts = [place.assign(metric=metric.lower(), **_scored(frame, metric, metric)[0]) for metric in metrics]
    note = f"{path}: a row a task, a column a metric ({', '.join(metrics)}){extra}{_left_out(frame, metrics)}"
    return _scores(path, pd.concat(parts, ignore_index=True), note)


def _melted(path: Path, frame: pd.DataFrame, known: Mapping[str, str], wide: Mapping[str, tuple[str, str]]) -> Scores:
    """A row of each task's column."""
    place, extra = _typed(frame, {ours: name for ours, name in known.items() if ours in PLACE}, wide)
    parts, errors = [], []
    for column, (task, metric) in wide.items():
        columns, own = _scored(frame, column, metric)
        errors += own
        parts.append(place.assign(task=task, metric=metric.lower(), **columns)[columns["value"].notna()])
    left = [str(column) for column in frame if column not in [*wide, *errors, *known.values()]]
    note = f"{path}: a column a task, {len(wide)} of them"
    named = ", ".join(f"{ours} from {known[ours]!r}" for ours in known if ours in PLACE)
    note += f"; {named}" if named else ""
    note += f"; left out: {listed(left, 12)}" if left else ""
    note += extra + _left_out(frame, wide)
    return _scores(path, pd.concat(parts, ignore_index=True), note)


def _placed(rows: pd.DataFrame) -> pd.DataFrame:
    """With what the models' names say of step, tokens and size, where no column does."""
    if "run" not in rows:
        return rows
    places = pd.DataFrame([place_of(str(name)) for name in rows["run"]], index=rows.index)
    for name in ("step", "tokens", "params"):
        if name not in rows and places[name].notna().any():
            rows[name] = places[name]
    if "step" in rows:
        rows["run"] = rows["run"].where(places["step"].isna() | (places["step"] != rows["step"]), places["run"])
    return rows


# ------------------------------------------------------------------------------------------------------------------- HELM


def _is_helm(path: Path) -> bool:
    columns = header_of(path)
    return (
        bool(columns)
        and plain(columns[0]) in [plain(name) for name in HELM_MODEL]
        and any(HELM_COLUMN.match(str(column)) for column in columns[1:])
    )


def _read_helm(path: Path, options: ScoreOptions) -> list[Scores]:
    frame = read_table(path)
    columns = [str(column) for column in frame.columns]
    matches = {column: HELM_COLUMN.match(column) for column in columns[1:]}
    wide = {
        column: (match["task"].strip(), HELM_METRIC.get(match["metric"].strip().lower(), match["metric"].strip()))
        for column, match in matches.items()
        if match
    }
    known = {"run": columns[0]} | _recognised([c for c in columns[1:] if c not in wide], options.columns, path)
    scores = _melted(path, frame, known, wide)
    return [Scores(path, scores.rows, scores.note.replace("a column a task", "HELM, a column a scenario"))]


HELM = Format("helm", _is_helm, _read_helm, header_of)
TABLE = Format("csv", _is_table, _read_table, _columns)
