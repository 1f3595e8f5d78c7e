"""A rank of evaluate, generate or memorise that is lost ends the others with 76 and one line, as one of a training does."""

import pytest

from emergence_train import config as configs
from emergence_train.training.run import train
from support import run_python

# Rank 1 is lost before the ranks meet again; one that is stopped goes on when the other has long ended.
SCRIPT = """
import os, signal, sys, time

from emergence_train.cli import run
from emergence_train.evaluation import memorisation, offline, text_samples

def lost(*given):
    if number == signal.SIGSTOP and (own := os.getpid()) and os.fork() == 0:
        time.sleep(12)
        os.kill(own, signal.SIGCONT)
        os._exit(0)
    os.kill(os.getpid(), number)
    time.sleep(60)

number = getattr(signal, sys.argv.pop(1))
if os.environ["RANK"] == "1":
    offline.load_model = text_samples.load_model = memorisation.load_model = lost
run()
"""


@pytest.fixture
def small_run(config_file):
    over = ["training.tokens=512", "checkpoints.every_tokens=512", "faults.silent_seconds=2"]
    return train(configs.load(config_file, over), lambda line: None)


EVALUATE = ["evaluate", "--split", "iid"]
GENERATE = ["generate", "--prompt", "the", "--tokens", "4"]
MEMORISE = ["memorise", "--items", "4", "--prefix", "4", "--continuation", "2"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("SIGKILL", EVALUATE),
        pytest.param("SIGSTOP", EVALUATE, marks=pytest.mark.slow),
        pytest.param("SIGKILL", GENERATE, marks=pytest.mark.slow),
        pytest.param("SIGKILL", MEMORISE, marks=pytest.mark.slow),
    ],
)
def test_lost_rank_of_a_verb_ends_the_others(small_run, tmp_path, number, words):
    script = tmp_path / "lost.py"
    script.write_text(SCRIPT)
    done = run_python(str(script), number, words[0], str(small_run), *words[1:], processes=2, timeout=60)
    lines = [line for line in done.stderr.splitlines() if line.startswith("emergence-train: ")]
    assert done.returncode == 76 and len(lines) == 1, done.stderr
    assert "rank 1" in lines[0] and lines[0].endswith("run the same command again"), lines


def test_two_ranks_write_once_what_one_writes(small_run, tmp_path):
    """Scores and rows are those of one process; the output is rank 0's."""
    words = ["-m", "emergence_train", MEMORISE[0], str(small_run), *MEMORISE[1:]]
    done = [run_python(*words, processes=processes) for processes in (0, 2)]
    assert [each.returncode for each in done] == [0, 0], done[1].stderr
    assert done[0].stdout == done[1].stdout
