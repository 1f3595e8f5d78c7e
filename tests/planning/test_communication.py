"""Bytes that a GPU sends: against a ring that is played out, and the collectives of real engines."""

import json

import pytest

from emergence_train.models.decoder_config import DecoderConfig
from emergence_train.models.memory import MOST_GATHERED
from emergence_train.planning.communication import QUANTIZED, bytes_per_step, exchanged_per_step, gathered_inside
from support import ROOT, run_python

WORKER = ROOT / "tests" / "planning" / "communication_worker.py"


def ring_all_reduce(ranks: int, elements: int) -> int:
    """Elements that rank 0 sends: every rank passes a piece to the next, until each is summed, then until each is everywhere."""
    pieces = [[{rank} for _ in range(ranks)] for rank in range(ranks)]  # whose values a rank's piece sums up
    messages = 0
    for phase, begin in (("reduce", 0), ("gather", 1)):
        for turn in range(ranks - 1):
            given = [(rank, (rank + begin - turn) % ranks) for rank in range(ranks)]
            contents = [set(pieces[rank][piece]) for rank, piece in given]
            for (rank, piece), content in zip(given, contents):
                after = (rank + 1) % ranks
                pieces[after][piece] = content | (pieces[after][piece] if phase == "reduce" else set())
            messages += 1
    assert all(piece == set(range(ranks)) for rank in pieces for piece in rank)
    return messages * elements // ranks


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_stage_0_is_one_ring_all_reduce(ranks):
    assert bytes_per_step(8_000, 4, 0, ranks, micro_batches=3) == 4 * ring_all_reduce(ranks, 8_000)


def test_main_gradients_are_scattered():
    """Half of the all-reduce, and the gathering of weights in bf16 as before."""
    plain, main = (bytes_per_step(8_000, 2, 1, 4, 3, main_gradients=main) for main in (False, True))
    assert plain - main == 4 * ring_all_reduce(4, 8_000) / 2


def test_one_gpu_sends_nothing():
    assert [bytes_per_step(1000, 2, stage, 1, 4) for stage in range(4)] == [0, 0, 0, 0]


def test_stage_3_gathers_twice_what_it_cannot_keep():
    small, large = MOST_GATHERED // 2, 3 * MOST_GATHERED
    assert bytes_per_step(small, 2, 3, 2, 1) == 2 * small
    assert bytes_per_step(large, 2, 3, 2, 1) == 3 * large - MOST_GATHERED


def test_hierarchical_partitions_gather_once_over_all():
    """Three micro-batches gather six times where weights are not kept, and five of those among the four of a node."""
    large = 3 * MOST_GATHERED
    kept = MOST_GATHERED  # of the forward pass, for the backward pass
    plain = bytes_per_step(large, 2, 3, 32, 3)
    over_all, inside = bytes_per_step(large, 2, 3, 32, 3, hpz=4), gathered_inside(large, 2, 3, 4)
    assert over_all == 31 / 32 * 2 * (large + 3 * large)
    assert inside == 3 / 4 * 2 * (6 * large - 3 * kept - large)
    assert over_all < plain and (plain - over_all) / (31 / 32) == pytest.approx(inside / (3 / 4))


def test_quantised_gathering_changes_gatherings_alone():
    """Of two in bf16 and a reduction of the gradients, a byte an element less in each gathering; scales are one in 8,000."""
    plain = bytes_per_step(8_000, 2, 3, 2, 1)
    assert plain - bytes_per_step(8_000, 2, 3, 2, 1, gathered_size=QUANTIZED) == 1 / 2 * (8_000 - 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "rounds", "hpz", "quantized"),
    [("fp32", 1, 2, False), ("bf16", 2, 2, False), ("bf16", 2, 1, True), ("fp32", 1, 2, True), ("bf16", 2, 2, True)],
)
def test_bytes_of_options_of_stage_3_are_real_engines(config_file, tmp_path, precision, rounds, hpz, quantized):
    """Four processes, also in pairs; the quantiser is PyTorch's arithmetic in the place of the extension for GPUs."""
    options = [f"hpz_partition_size={hpz}", f"quantized_weights={str(quantized).lower()}"]
    given = str(config_file), str(tmp_path / "sent.json"), precision, str(2 // rounds), *options
    done = run_python(str(WORKER), *given, processes=4)
    assert done.returncode == 0, done.stderr[-2000:]
    measured, size = json.loads((tmp_path / "sent.json").read_text()), 2 if precision == "bf16" else 4
    gathered_size = QUANTIZED if quantized else size
    sent = bytes_per_step(1_000_000, size, 3, 4, rounds, hpz=hpz, gathered_size=gathered_size) / 1e6
    assert sent == pytest.approx(measured["4"], rel=0.01)
    inside = gathered_inside(1_000_000, gathered_size, rounds, hpz) / 1e6
    assert inside == pytest.approx(measured.get("2", 0.0), rel=0.01)


@pytest.mark.slow
def test_bytes_are_those_of_real_engines(config_file, tmp_path):
    """Two processes, two micro-batches; less than 1% are norms, scalars and padding."""
    done = run_python(str(WORKER), str(config_file), str(tmp_path / "sent.json"), processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    model = DecoderConfig(layers=2, width=320, heads=4, kv_heads=1, ffn=512, vocab_size=1024)
    for kind, measured in json.loads((tmp_path / "sent.json").read_text()).items():
        stage, precision, *checkpointing = kind.split()
        size = 2 if precision == "bf16" else 4
        rounds = 8 if checkpointing else 2
        main = kind == "1 bf16"  # the worker installs main gradients there
        planned = bytes_per_step(1_000_000, size, int(stage), 2, rounds, main_gradients=main) / 1e6
        if checkpointing:  # sequences of 8 tokens, 4 on each rank
            exchanged, measured = measured
            assert exchanged == exchanged_per_step(model.exchanged(2), size, 2, 4 * rounds, checkpointing[0]), kind
        assert planned == pytest.approx(measured, rel=0.01), kind
