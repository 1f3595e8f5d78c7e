"""Why a threshold: explanations of each task that has one, with their evidence; and what smaller sizes keep of an ability."""

import html

from emergence_train.analysis.emergence.result import EmergenceResult, Explanation, Kept, TaskKept
from emergence_train.formatting import short
from emergence_train.report.collect import ReportData
from emergence_train.report.families import letters, shown_name
from emergence_train.report.parts import table

NAMES = {
    "metric": "the metric: it counts an answer only where all of it is right",
    "steps": "several steps, all of which must be right",
    "loss": "the loss: whichever run has reached it",
    "tokens": "the data: tokens seen, whichever run",
    "compute": "training compute: size and tokens together",
}
VERDICTS = {"explains": "explains it", "in-part": "in part", "does-not": "does not explain it", "open": "cannot tell"}
ALONE = {
    "items": " One run a size: the intervals are of items alone, and other runs may differ by more.",
    "items and runs of some sizes": " Sizes of one run are taken to differ by luck as the others do.",
}
ABOUT = (
    "<p>For each task with a threshold, or that some runs can do and others not at the same loss, what was measured of each "
    "explanation. They do not exclude one another: loss, tokens and compute go together, and only runs that are unlike tell "
    "them apart. The last column has the share of the score's variation over checkpoints that is explained, with its 95% "
    "interval over runs, which needs three: from 0.8 on it explains it, below 0.5 it does not. These limits are a convention; "
    "where the interval reaches over one, or is not known, the rows cannot tell.</p>"
)


def sections(data: ReportData) -> list[tuple[str, str, str]]:
    """(anchor, title, body); nothing where no explanation was measured."""
    if data.emergence is None:
        return []
    result = data.emergence.result
    if not result.explanations:
        return []
    return [("explanations", "Explanations", ABOUT + _table(result))]


def _table(result: EmergenceResult) -> str:
    groups = letters(result)
    rows = [
        [
            shown_name(entry, groups),
            NAMES[entry.explanation],
            html.escape(entry.evidence),
            shown(entry),
        ]
        for entry in result.explanations
    ]
    return table(["task, metric", "explanation", "evidence", "explains"], rows, "Explanations", words=True)


def shown(entry: Explanation) -> str:
    """The share that is explained, with its interval where there is one, and the verdict."""
    share, verdict = entry.explained, VERDICTS[entry.verdict]
    if share is None or share.value is None:
        return verdict
    ends = "" if share.low95 is None or share.high95 is None else f" [{_end(share.low95)}, {share.high95:.2f}]"
    return f"{share.value:.2f}{ends}: {verdict}"


def _end(low: float) -> str:
    return f"{low:.2f}" if low >= -1 else "&lt; -1"


def survival(tasks: tuple[TaskKept, ...], groups: dict[str, str]) -> str:
    """A row for each smaller size and ability that the largest size has: what it keeps of it."""
    shown = [task for task in tasks if task.metric.startswith(("acc", "exact_match"))]
    rows = [
        [
            shown_name(task, groups),
            f"{short(size.params)} of {short(task.largest)}",
            _kept(size.at_equal_tokens),
            short(task.tokens),
            _kept(size.at_equal_loss),
            f"{task.loss:.2f}",
        ]
        for task in shown
        for size in task.sizes
    ]
    if not rows:
        return ""
    alone = "".join(text for whose, text in ALONE.items() if any(task.interval_of == whose for task in shown))
    if early := sorted({run for task in shown for run in task.left_out}):
        alone += f" Runs that ended before half of their size's tokens are left out: {html.escape(', '.join(early))}."
    head = ["task, metric", "parameters", "keeps at equal tokens", "tokens", "keeps at equal loss", "loss (nats)"]
    return (
        "<h3>Does it hold in a smaller model?</h3><p>Of what the largest size has above chance, the share that a smaller one "
        "keeps [95%], at the most tokens and at the lowest loss that all runs have reached which have any in common with it; "
        "unknown: no run of the size has checkpoints on both sides. More than half is kept, less is "
        f"lost; open: the interval reaches over one half.{alone}</p>" + table(head, rows, "What smaller sizes keep")
    )


def _kept(kept: Kept) -> str:
    share = kept.share
    if share.value is None:
        return "unknown"
    return f"{share.value:.0%} [{share.low95:.0%}, {share.high95:.0%}] ({kept.verdict})"
