"""The quickstart's examples have the lines that the analyses print."""

import ast
import re
from types import SimpleNamespace

from emergence_train.analysis.emergence import output as emergence
from emergence_train.analysis.temporal import output as temporal
from support import ROOT

PAGE = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
NUMBER = r"([+-]?[\d,.]+)"


def lines(begin: str) -> list[str]:
    """The example that begins so."""
    (block,) = (text for text in re.findall(r"^```text\n(.*?)^```", PAGE, flags=re.M | re.S) if text.startswith(begin))
    return block.splitlines()


def floats(*texts: str) -> list[float]:
    return [float(text.replace(",", "")) for text in texts]


def test_the_temporal_example_is_what_is_printed():
    """Its numbers, printed again, give its lines; the note's words are the forecast's."""
    head, fitted, dots, *notes = lines("quickstart-0.4m")
    name, split, *at = re.fullmatch(
        rf"(\S+) \[(\w+)\]: loss at step {NUMBER} \({NUMBER} tokens\), held out of the fit", head
    ).groups()
    numbers = re.findall(NUMBER, fitted.replace("40%", "").replace("95%", "").replace(", ", " "))
    until, loss, low95, high95, actual = floats(*numbers)
    step, tokens = (int(number) for number in floats(*at))
    final = SimpleNamespace(
        step=step, tokens=tokens, loss=loss, low95=low95, high95=high95, actual=actual, actual_rows=None
    )
    run = SimpleNamespace(run=name, split=split, final=final, nothing_to_forecast=None, fit_fraction=0.4)
    run.fit_until_tokens = int(until)
    assert temporal._end_lines(run) == [head, fitted] and dots.strip() == "..."
    words = [
        node.value
        for path in (ROOT / "emergence_train" / "analysis" / "temporal").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    for note in " ".join(notes).split("note: ")[1:]:
        for part in re.split(r"[\d.,;]+", re.sub(r"\s+", " ", note)):
            assert any(part.strip() in word for word in words), part


def test_the_emergence_example_is_what_is_printed():
    """A task of each line, printed again, gives the line; its columns are those of the table's head."""
    head, *rest = lines("task, metric")
    rows = [line for line in rest if re.search(r"\d \d+$", line)]
    assert len(rows) >= 5
    tasks = [task_of(row) for row in rows]
    longest = SimpleNamespace(task="continuation", metric="answer_bits_per_byte")
    width = len(longest.task) + len(longest.metric) + 3
    assert [emergence._task_line(task, width) for task in tasks] == rows
    for effect in (task.size_effect for task in tasks):  # p is the larger of two, one of them the interval's
        assert effect.p > 0.05 or not effect.low95 < 0 < effect.high95
    empty = SimpleNamespace(mirage=[], survival=[], abilities=[], convention="", notes=[])
    padded = task_of(rows[0])
    padded.task, padded.metric = longest.task, longest.metric
    empty.tasks = [padded]
    assert emergence.format_table(empty).splitlines()[0] == head


def task_of(row: str) -> SimpleNamespace:
    band = rf"{NUMBER} \[{NUMBER}, {NUMBER}\]".replace("(", "(?:")
    name, metric, verdict, probability, eta, effect, p, count = re.fullmatch(
        rf"(\w+), (\w+)\s+([\w-]+)\s+{NUMBER}\s+(-|{band})\s+({band})\s+{NUMBER} (\d+)", row
    ).groups()
    return SimpleNamespace(
        family="",
        task=name,
        metric=metric,
        verdict=verdict,
        probability=float(probability),
        eta=None if eta == "-" else interval(eta),
        size_effect=SimpleNamespace(**vars(interval(effect)), p=float(p), reason=None),
        rows=int(count),
        probabilities=None,
        notes=[],
        reason="",
    )


def interval(text: str) -> SimpleNamespace:
    value, low95, high95 = floats(*re.findall(NUMBER, text.replace(", ", " ")))
    return SimpleNamespace(value=value, low95=low95, high95=high95)
