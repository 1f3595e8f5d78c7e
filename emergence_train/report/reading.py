"""How a report reads files that are no run directories: what logs and results of tasks leave out, and what lies ahead."""

from dataclasses import dataclass

from emergence_train.analysis import logs, scores
from emergence_train.analysis.logs import LogOptions
from emergence_train.analysis.outlook import Ahead, parse_schedule
from emergence_train.analysis.scores import ScoreOptions
from emergence_train.errors import InputError


@dataclass(frozen=True)
class Reading:
    """What the user says of logs, of results of other programs, and of the rest of logs and tables of curves. The parameters by
    run in `scores` are of logs too."""

    log: LogOptions = LogOptions()
    scores: ScoreOptions = ScoreOptions()
    ahead: Ahead = Ahead()


AS_THEY_ARE = Reading()


def reading_of(
    format: str,
    run: str | None,
    params: list[str],
    tokens_per_step: int | None,
    columns: list[str],
    loss_unit: str | None,
    loss: str | None,
    to_tokens: int | None,
    schedule: str | None,
) -> Reading:
    """A Reading from the command line's words: each goes to whichever of logs and results knows it. Raises InputError."""
    known = tuple(dict.fromkeys((*logs.FORMATS, "table", *scores.FORMATS, "evaluations")))
    if format != "auto" and format not in known:
        raise InputError(f"--format {format}: unknown; choose auto, {', '.join(known)}")
    logs.columns_of(columns, (*logs.QUANTITIES, *scores.QUANTITIES), "loss=eval/loss")
    of_logs, of_scores = (
        [text for text in columns if text.partition("=")[0] in names] for names in (logs.QUANTITIES, scores.QUANTITIES)
    )
    scored = scores.options_of(
        format if format in (*scores.FORMATS, "evaluations") else "auto", run, params, tokens_per_step, of_scores, loss
    )
    logged = logs.options_of(
        format if format in (*logs.FORMATS, "table") else "auto",
        run,
        scored.params.get(""),
        tokens_per_step,
        of_logs,
        loss_unit,
    )
    return Reading(logged, scored, Ahead(to_tokens, parse_schedule(schedule) if schedule else None))
