"""The page of a probe: what checkpoints repeat of the text that they were trained on."""

import html
from pathlib import Path

from emergence_train import files
from emergence_train.analysis.memorisation.figures import shares
from emergence_train.analysis.memorisation.result import MemorisationResult
from emergence_train.analysis.results import Interval
from emergence_train.report.page import document
from emergence_train.report.parts import grid, table


def write_page(out: Path, result: MemorisationResult) -> Path:
    """Write report.html into `out`; returns its path."""
    sections = [
        (
            "shares",
            "How often text comes back",
            _against_controls(result) + grid([shares(result)]) + _shares(result),
        )
    ]
    if result.counterfactual:
        sections.append(("counterfactual", "With a text and without it", _counterfactual(result)))
    names = ", ".join(dict.fromkeys(run.run for run in result.runs))
    path = out / "report.html"
    files.write_bytes(path, document(names, "Memorised text", sections).encode())
    return path


def _against_controls(result: MemorisationResult) -> str:
    rows = [
        [
            html.escape(run.run),
            f"{run.params:,}",
            f"{run.step:,}",
            _shown(run.of_100, run.of_100_low95, run.of_100_high95, 1),
            "" if run.p is None else f"{run.p:.2g}",
            _shown(run.loss_gain, run.loss_gain_low95, run.loss_gain_high95, 3),
        ]
        for run in result.runs
    ]
    head = ["run", "parameters", "step", "per 100, beyond controls", "p", "loss of controls less loss of trained, nats"]
    words = (
        f"{result.prefix} tokens of a sequence are given; it counts where the next {result.continuation} come exactly, each the "
        "likeliest. Controls are sequences that no step was trained on. In brackets: 95% intervals."
    )
    return f"<p>{words}</p>" + table(head, rows, "trained sequences against controls")


def _shares(result: MemorisationResult) -> str:
    rows = [
        [
            html.escape(row.run),
            f"{row.step:,}",
            html.escape(row.seen),
            f"{row.extracted} of {row.items}",
            _shown(row.share, row.low95, row.high95, 3),
            f"{row.loss:.3f}",
        ]
        for row in result.shares
    ]
    return table(["run", "step", "times seen", "produced", "share", "loss, nats"], rows, "shares by times seen")


def _counterfactual(result: MemorisationResult) -> str:
    rows = [
        [
            f"{row.params:,}",
            f"{row.step:,}",
            html.escape(row.seen),
            str(row.models),
            str(row.items),
            _interval(row.nats),
            _interval(row.extracted),
        ]
        for row in result.counterfactual or ()
    ]
    head = [
        "parameters",
        "step",
        "times seen",
        "models",
        "texts",
        "loss without less loss with, nats",
        "share produced",
    ]
    words = (
        "Models of one size, some trained on a text and some not: by how much its loss is lower where it was seen. What any "
        "model predicts well counts for nothing here."
    )
    return f"<p>{words}</p>" + table(head, rows, "counterfactual memorisation")


def _interval(value: Interval) -> str:
    return _shown(value.value, value.low95, value.high95, 3)


def _shown(value: float | None, low: float | None, high: float | None, digits: int) -> str:
    if value is None:
        return "open"
    ends = f" [{low:.{digits}f}, {high:.{digits}f}]" if low is not None and high is not None else ""
    return f"{value:.{digits}f}{ends}"
