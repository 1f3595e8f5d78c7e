"""Which samples a rank's micro-batch is made of: each of the step's once, whatever the ranks, rewinds and branches."""

import itertools
from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emergence_train.evaluation.positions import IGNORED
from emergence_train.faults.anomalies import SkippedBatches
from emergence_train.training.step import Stepper

SEQUENCE = 3
DEVICE = torch.device("cpu")


def stepper(skipped, batch: int, micro: int, world: int, rank: int, mask: bool = False) -> Stepper:
    """One that loads samples, and no more; each token of sample i is i, and each sample ends one document and begins another."""
    stepper = object.__new__(Stepper)
    stepper.skipped, stepper.batch, stepper.micro, stepper.document_mask = skipped, batch, micro, mask
    stepper.rounds = batch // (micro * world)
    stepper.mesh = SimpleNamespace(data=SimpleNamespace(size=world, rank=rank), device=DEVICE)
    stepper.dataset = SimpleNamespace(
        sample=lambda index: np.full(SEQUENCE + 1, index, np.int64),
        document_ids=lambda index: np.array([0, 0, 1, 1], np.int64),
    )
    return stepper


def loaded(skipped, step: int, batch: int, micro: int, world: int, mask: bool = False) -> list[int]:
    """The samples of a step over all ranks, by round and rank."""
    ranks = [stepper(skipped, batch, micro, world, rank, mask) for rank in range(world)]
    numbers = []
    for number in range(ranks[0].rounds):
        for rank in ranks:
            tokens, targets, ids = rank._load(step, number)
            assert tokens.shape == targets.shape == (micro, SEQUENCE)
            assert torch.equal(tokens, tokens[:, :1].expand(-1, SEQUENCE))
            wanted = tokens.clone()
            if mask:
                assert ids.tolist() == [[0, 0, 1]] * micro
                wanted[:, 1] = IGNORED  # the first token of a document
            assert torch.equal(targets, wanted)
            numbers += tokens[:, 0].tolist()
    return numbers


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
@given(events=EVENTS, batches=st.lists(st.sampled_from([2, 4, 6, 12]), min_size=25, max_size=25), mask=st.booleans())
def test_no_sample_is_trained_twice_or_lost(tmp_path_factory, events, batches, mask):
    """A plain list of what each state was trained on is the oracle: the next sample is the first that is neither in it nor
    skipped. A rewind skips what came after its state; a branch begins with its state's list and what was skipped by then."""
    folder = tmp_path_factory.mktemp("runs")
    names, layouts = itertools.count(), itertools.count()
    batch, run = batches[0], folder / "start"
    run.mkdir()
    skipped = SkippedBatches(run)
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
                world, micro = options[next(layouts) % len(options)]
                assert loaded(skipped, step, batch, micro, world, mask) == wanted
                trained += wanted
        elif what == "save":
            states[step] = (list(trained), set(left_out))
        elif what == "resume":  # another process reads the run's directory
            skipped = SkippedBatches(run, skipped.inherited)
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
            skipped = SkippedBatches(run, skipped.samples_before(at, batch))
            trained, left_out = list(states[at][0]), set(states[at][1])
            step, batch, states = at * batch // other, other, {}
    assert trained == sorted(set(trained))
    assert set(range(max(trained, default=-1) + 1)) - set(trained) <= left_out
