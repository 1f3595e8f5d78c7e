"""The notebooks of the documentation run, and give the outputs that the pages show."""

import re

import pytest

from docs.site_pages import notebooks

NUMBER = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?")
CLOSE = 0.02  # relative: fits differ in their last digits between builds of BLAS


def text_of(outputs: list[dict]) -> str:
    return "".join("".join(output.get("text") or output["data"].get("text/plain", "")) for output in outputs)


def same(ours: str, shown: str) -> bool:
    """Equal but for numbers with a fraction, which are close; columns may be wider by a digit."""
    words = [NUMBER.sub("#", re.sub(r"\s+", " ", text)) for text in (ours, shown)]
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (ours, shown)]
    return words[0] == words[1] and numbers[0] == pytest.approx(numbers[1], rel=CLOSE, abs=1e-3)


def test_there_are_notebooks():
    assert [path.stem for path in notebooks.paths()] == ["open_a_run", "someone_elses_log"]


@pytest.mark.parametrize("path", notebooks.paths(), ids=lambda path: path.stem)
def test_cells_run_and_give_what_is_shown(path):
    for cell, outputs in notebooks.executed(notebooks.read(path)):
        shown = cell["outputs"]
        assert [output["output_type"] for output in outputs] == [output["output_type"] for output in shown]
        assert same(text_of(outputs), text_of(shown)), cell["source"]
        pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
        assert all(len(picture) > 10_000 for picture in pictures)
        assert not pictures or cell["metadata"]["alt"]


def test_a_changed_output_is_seen():
    assert same("loss 3.001 [2.9, 3.1]", "loss  3.002 [2.9, 3.1]")
    assert not same("loss 3.001", "loss 3.3") and not same("4 of 12", "5 of 12") and not same("a 1.0", "b 1.0")
