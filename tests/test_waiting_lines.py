"""Lines about a long loop: how far it is and what is left, now and then, and none of a short one."""

import pytest

from emergence_train import waiting


@pytest.mark.parametrize(
    "wanted, seconds, lines",
    [(True, 4.0, ["loops: 2 of 8, 24 s left", "loops: 6 of 8, 8 s left"]), (True, 0.5, []), (False, 4.0, [])],
)
def test_lines_of_a_loop(wanted, seconds, lines, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(waiting, "wanted", wanted)
    for number in waiting.along(range(8), "loops"):
        assert now[0] == number * seconds
        now[0] += seconds
    seen = capsys.readouterr()
    assert seen.err.splitlines() == [f"emergence-train: {line}" for line in lines] and not seen.out
