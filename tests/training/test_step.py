"""Which samples a rank's micro-batch is made of: each of the step's once, whatever the ranks, rewinds and branches."""

import itertools
import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emergence_train.errors import describe
from emergence_train.faults.anomalies import SkippedBatches
from emergence_train.models.language_model import IGNORED
from emergence_train.parallel.mesh import data_parallel
from emergence_train.training.samples import Samples
from support import run_python

SEQUENCE = 3
DEVICE = torch.device("cpu")


def samples_of(skipped, batch: int, micro: int, world: int, rank: int, mask: bool, ahead: bool, read=None) -> Samples:
    """A rank's; each token of sample i is i, and each sample ends one document and begins another."""
    mesh = data_parallel(rank, world, rank, DEVICE)
    dataset = SimpleNamespace(
        sequence=SEQUENCE,
        sample=read or (lambda index: np.full(SEQUENCE + 1, index, np.int64)),
        document_ids=lambda index: np.array([0, 0, 1, 1], np.int64),
    )
    return Samples(dataset, skipped, mesh, batch=batch, micro_batch=micro, document_mask=mask, ahead=ahead)


def loaded(ranks: list[Samples], step: int) -> list[int]:
    """The samples of a step over all ranks, by round and rank."""
    numbers = []
    for batches in zip(*(rank(step) for rank in ranks), strict=True):
        for tokens, targets, ids in batches:
            assert tokens.shape == targets.shape == (ranks[0].micro_batch, SEQUENCE)
            assert torch.equal(tokens, tokens[:, :1].expand(-1, SEQUENCE))
            wanted = tokens.clone()
            if ids is not None:
                assert ids.tolist() == [[0, 0, 1]] * ranks[0].micro_batch
                wanted[:, 1] = IGNORED  # the first token of a document
            assert torch.equal(targets, wanted) and ranks[0].document_mask == (ids is not None)
            numbers += tokens[:, 0].tolist()
    return numbers


AHEAD = """
import sys
from emergence_train import config
from emergence_train.training import step
from emergence_train.training.run import train
ahead, stop, path, *over = sys.argv[1:]
Samples = step.Samples
step.Samples = lambda *given, **named: Samples(*given, **named | {"ahead": bool(ahead)})
train(config.load(path, over), print, stop_after=int(stop))
"""
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("train"), st.integers(1, 6)),
        st.tuples(st.just("save"), st.just(0)),
        st.tuples(st.just("rewind"), st.integers(0, 5)),
        st.tuples(st.just("branch"), st.integers(0, 5)),
        st.tuples(st.just("resume"), st.just(0)),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=150)
@given(
    events=EVENTS,
    batches=st.lists(st.sampled_from([2, 4, 6, 12]), min_size=25, max_size=25),
    mask=st.booleans(),
    ahead=st.booleans(),
)
def test_no_sample_is_trained_twice_or_lost(tmp_path_factory, events, batches, mask, ahead):
    """A plain list of what each state was trained on is the oracle: the next sample is the first that is neither in it nor
    skipped. A rewind skips what came after its state; a branch begins with its state's list and what was skipped by then."""
    folder = tmp_path_factory.mktemp("runs")
    names, layouts = itertools.count(), itertools.count()
    batch, run = batches[0], folder / "start"
    run.mkdir()
    skipped = SkippedBatches(run)
    readers: dict[tuple[int, int], list[Samples]] = {}  # of this process, by world size and micro-batch
    trained: list[int] = []
    left_out: set[int] = set()
    step, states = 0, {}

    for (what, number), other in zip(events, batches):
        if what == "train":
            for _ in range(number):
                step += 1
                used = left_out | set(trained)
                wanted = list(itertools.islice((n for n in itertools.count() if n not in used), batch))
                options = [(w, m) for w in (1, 2, 3) for m in (1, 2, 4) if batch % (w * m) == 0]
                world, micro = options[next(layouts) // 3 % len(options)]
                if (world, micro) not in readers:
                    ranks = [samples_of(skipped, batch, micro, world, rank, mask, ahead) for rank in range(world)]
                    readers[world, micro] = ranks
                assert loaded(readers[world, micro], step) == wanted
                trained += wanted
        elif what == "save":
            states.setdefault(step, (list(trained), set(left_out)))  # none is saved twice: not after a rewind to it
        elif what == "resume":  # another process reads the run's directory
            skipped, readers = SkippedBatches(run, skipped.inherited), {}
        elif what == "rewind" and (there := [s for s in states if s < step]):
            back = there[number % len(there)]
            skipped.add(back, step, "a spike")
            skipped.save()
            left_out |= set(trained) - set(states[back][0])
            trained, step = list(states[back][0]), back
            states = {s: state for s, state in states.items() if s <= back}
        elif what == "branch" and (there := [s for s in states if (s * batch) % other == 0]):
            at = there[number % len(there)]
            run = folder / f"child-{next(names)}"
            run.mkdir()
            skipped, readers = SkippedBatches(run, skipped.samples_before(at, batch)), {}
            trained, left_out = list(states[at][0]), set(states[at][1])
            step, batch, states = at * batch // other, other, {}
    assert trained == sorted(set(trained))
    assert set(range(max(trained, default=-1) + 1)) - set(trained) <= left_out


def test_next_step_is_read_meanwhile(tmp_path):
    """By the time a step has its samples, those of the next are read by another thread, which then ends."""
    threads: dict[int, str] = {}

    def read(index: int) -> np.ndarray:
        threads[index] = threading.current_thread().name
        return np.full(SEQUENCE + 1, index, np.int64)

    samples = samples_of(SkippedBatches(tmp_path), 2, 1, 1, 0, mask=False, ahead=True, read=read)
    assert loaded([samples], 1) == [0, 1]
    samples.reading.thread.join()
    assert sorted(threads) == [0, 1, 2, 3] and {threads[2], threads[3]} == {"samples"} != {threads[0]}
    assert loaded([samples], 2) == [2, 3] and "samples" in {threads[2], threads[3]}
    samples.reading.thread.join()
    assert not any(thread.name == "samples" for thread in threading.enumerate())


def test_a_batch_read_ahead_is_not_another_steps(tmp_path):
    """After a rewind, or where steps are left out, the step reads its own."""
    samples = samples_of(SkippedBatches(tmp_path), 2, 1, 1, 0, mask=False, ahead=True)
    assert [loaded([samples], step) for step in (1, 4, 2)] == [[0, 1], [6, 7], [2, 3]]
    samples.reading.thread.join()


def test_what_a_thread_could_not_read_is_raised_by_its_step(tmp_path):
    def read(index: int) -> np.ndarray:
        if index == 1:
            raise OSError(5, "Input/output error", "shard-0")
        return np.full(SEQUENCE + 1, index, np.int64)

    samples = samples_of(SkippedBatches(tmp_path), 1, 1, 1, 0, mask=False, ahead=True, read=read)
    assert loaded([samples], 1) == [0], "the failure is the next step's"
    with pytest.raises(OSError) as error:
        samples(2)
    assert describe(error.value) == "shard-0: Input/output error; fix that and run the same command again"


def test_run_with_samples_read_ahead_is_the_same(config_file, tmp_path):
    """Whole and interrupted, with documents, against one that reads each step's own: the losses' bits."""
    (tmp_path / "ahead.py").write_text(AHEAD)
    over = [str(config_file), "training.tokens=1536", "checkpoints.every_tokens=1024", "training.document_mask=true"]
    for ahead, name, stops in (("", "plain", [6]), ("1", "ahead", [4, 6])):
        for stop in stops:
            done = run_python(str(tmp_path / "ahead.py"), ahead, str(stop), *over, f"name={name}")
            assert done.returncode == 0, done.stderr
    logs = [(tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines() for name in ("plain", "ahead")]
    losses = [[row["loss"] for row in map(json.loads, lines) if row["kind"] == "train"] for lines in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 6
