"""The files of a long run are read in bounded memory: each command in a process of its own, its greatest resident set."""

import re

import pytest

from support import ROOT, study

SPEED = ROOT / "benchmarks" / "speed"

# Largest resident set in GB of each command, for a tenth of a long run's steps; report took 1.9 before tables
# were read in pieces, and imports alone take 0.2 (resume: 0.4).
LIMITS = {"report": 0.55, "temporal, no figures": 0.35, "temporal": 0.55, "emergence": 0.4, "resume": 0.48}
WHOLE = {"report": 1.5, "temporal": 1.5, "emergence": 1.5, "resume": 0.7}


@pytest.fixture(scope="module")
def long_run():
    return study("long_run", SPEED)


@pytest.fixture(scope="module")
def run(long_run, tmp_path_factory):
    """100,000 steps, 20 checkpoints of 3 splits and 1,024 positions; one step of them has a loss of a million."""
    folder = tmp_path_factory.mktemp("long") / "long"
    long_run.write_run(folder, 100_000, 20, 3, 1024, spike=33_333)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "report",
        "resume",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("temporal, no figures", "emergence")),
    ],
)
def test_a_tenth_of_a_long_run_is_read_in_bounded_memory(long_run, run, command):
    measured = long_run.measure(command, run)
    assert "failed" not in measured and measured["peak_gb"] < LIMITS[command], measured
    if command == "report":
        text = (run / "out-report" / "report.html").read_text()
        assert len(text) < 10_000_000
        assert "observed above the figure, up to 1M" in text  # in the forecast's figure, above its axis
        assert re.search(
            r'long, train","x":"token position"[^{]*"xs":\[\[1,2,3,', text
        )  # drawn from numbers in the page


@pytest.mark.slow
def test_a_tenth_of_a_long_run_is_analysed_in_bounded_memory(long_run, run):
    """Its many figures take half a minute."""
    measured = long_run.measure("temporal", run)
    assert "failed" not in measured and measured["peak_gb"] < LIMITS["temporal"], measured


@pytest.mark.slow
def test_a_long_run_is_read_in_bounded_memory(long_run, tmp_path):
    """A million steps, 400 checkpoints, 11 splits, 2,048 positions."""
    long_run.write_run(tmp_path / "long", 1_000_000, 400, 11, 2048)
    rows = {command: long_run.measure(command, tmp_path / "long") for command in ("fresh", *WHOLE)}
    for command, limit in WHOLE.items():
        assert "failed" not in rows[command] and rows[command]["peak_gb"] < limit, rows
    assert rows["resume"]["peak_gb"] - rows["fresh"]["peak_gb"] < 0.3, rows
    assert (tmp_path / "long" / "out-report" / "report.html").stat().st_size < 10_000_000


@pytest.mark.slow
def test_a_giant_document_is_prepared_in_a_gigabyte(tmp_path):
    """A .txt of 200 MB is one document."""
    prepare = study("prepare", SPEED)
    from emergence_train.data import tokenizer

    # What is measured does not depend on the tokens: 4 MB of text do
    tokenizer.train(prepare.up_to(prepare.texts(), 4e6), 4096).save(str(tmp_path / "tokenizer.json"))
    pattern, size = prepare.write("giant-file", tmp_path, 200)
    measured = prepare.run(prepare.OURS, tmp_path, pattern)
    assert size > 190e6 and measured["peak_gb"] < 1.0, measured
