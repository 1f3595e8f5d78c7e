"""Rows of logits on Hopper, called directly: in the emulator, or on an H100."""

import emulated_barriers
import pytest
import torch
from kernel_checks import assert_as_good

CUDA = torch.cuda.is_available()
pytestmark = pytest.mark.usefixtures("hopper")
WIDE, NARROW, HALF = torch.float32, torch.bfloat16, torch.float16


def rows_of(R: int, V: int, types: tuple, device, last: bool = False):
    """z, dz in its memory, targets, valid, scale: ignored rows, a confident one, targets out of range. last: the gradient is in
    the last half of a float32 row."""
    torch.manual_seed(R * V)
    padded = -(-V // 16) * 16
    z = (torch.randn(R, padded) * 4).to(device, types[0])
    z[0, V // 2] = 40.0
    dz = z.view(types[1])
    dz = dz[:, -padded:] if last else dz[:, :padded]
    valid, targets = (torch.arange(R) % 5 != 2).to(device), torch.randint(V, (R,)).to(device)
    targets[0] = V // 2
    return z, dz, targets, valid, torch.randn(R).to(device)


def swept(z, dz, V, targets, valid, scale, z_loss=0.0):
    loss, top, log_total, entropy = (torch.full(targets.shape, torch.nan, device=z.device) for _ in range(4))
    correct = torch.zeros_like(valid)
    torch.ops.emergence_cuda.loss_rows_hopper(
        z, dz, V, targets, valid, scale, loss, top, log_total, correct, entropy, z_loss
    )
    return loss, top + log_total, entropy, dz[:, :V], correct


def exact(z, V, targets, valid, scale, z_loss):
    wide = z[:, :V].double().clone().requires_grad_()
    lse, known = wide.logsumexp(-1), valid.double()
    loss = lse - wide.gather(1, targets[:, None])[:, 0]
    (dz,) = torch.autograd.grad(((loss + z_loss * lse.square()) * scale.double() * known).sum(), wide)
    entropy = -(wide.softmax(-1) * wide.log_softmax(-1)).sum(-1)
    return (
        *((row * known).detach() for row in (loss, lse, entropy)),
        dz,
        (wide.gather(1, targets[:, None])[:, 0] == wide.amax(-1)) & valid,
    )  # of a tie the target too


# Columns: less than a pack, a part of a slot, slots to the brim, and several rows a block of threads in the emulator.
SIZES = [(7, 1), (4, 4096), (8, 4099), (5, 9001), (3, 6145), (3, 12_345)]
REAL = [(1000, 50304), (133, 57344), (64, 32000)]  # on a GPU


@pytest.mark.parametrize("R, V", SIZES + (REAL if CUDA else []))
@pytest.mark.parametrize(
    "types, last",
    [
        ((WIDE, WIDE), False),
        ((WIDE, NARROW), False),
        ((WIDE, NARROW), True),
        ((WIDE, HALF), True),
        ((NARROW, NARROW), False),
    ],
    ids=str,
)
def test_against_float64(R, V, types, last, device):
    z, dz, *rows = rows_of(R, V, types, device, last)
    *wanted, right = exact(z, V, *rows, 1e-3)
    *got, correct = swept(z, dz, V, *rows, z_loss=1e-3)
    assert torch.equal(correct, right)
    for name, ours, true in zip(("loss", "lse", "entropy", "dz"), got, wanted):
        assert_as_good(name, ours, true, true.to(ours.dtype), floor=8.0, terms=0.0 if name == "dz" else 50.0)


def test_a_target_out_of_range(device):
    z, dz, targets, valid, scale = rows_of(3, 4100, (WIDE, NARROW), device)
    valid[:], targets[:] = True, torch.tensor([-1, 4100, (1 << 32) + 3])
    wanted = z[:, :4100].double().softmax(-1) * scale[:, None]
    loss, _, _, dz, correct = swept(z, dz, 4100, targets, valid, scale)
    assert loss.isposinf().all() and not correct.any()
    assert torch.allclose(dz.double(), wanted, rtol=2**-8, atol=1e-6)


def test_what_is_not_a_number_stays_so(device):
    z, dz, targets, valid, scale = rows_of(2, 4100, (WIDE, NARROW), device)
    z[0, 4099] = torch.nan
    loss, _, entropy, dz, _ = swept(z, dz, 4100, targets, valid, scale)
    for of_rows in (loss, entropy, dz):
        assert of_rows[0].isnan().all() and of_rows[1].isfinite().all()


def test_a_row_that_does_not_fit(device):
    z, dz, *rows = rows_of(1, 57345, (WIDE, NARROW), device)
    with pytest.raises(RuntimeError, match="57345 logits does not fit"):
        swept(z, dz, 57345, *rows)


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
def test_again_and_again(device):
    """The same bits each time: what arrived too early, or was overwritten too soon, would show."""
    first = None
    for _ in range(20):
        z, dz, *rows = rows_of(2000, 50304, (WIDE, NARROW), device)
        got = [row.clone() for row in swept(z, dz, 50304, *rows)]
        first = first or got
        assert all(torch.equal(a, b) for a, b in zip(got, first))


def run() -> list[torch.Tensor]:
    z, dz, *rows = rows_of(8, 9001, (WIDE, NARROW), "cpu")
    return [row.clone() for row in swept(z, dz, 9001, *rows)]


def test_the_order_of_threads_does_not_matter(emulated, monkeypatch):
    usual = run()
    monkeypatch.setenv("EMERGENCE_EMULATE_SEED", "1")
    assert all(torch.equal(a, b) for a, b in zip(usual, run()))


def test_every_barrier_and_wait_is_needed(emulated, monkeypatch):
    usual = run()
    reasons = emulated_barriers.written("cuda/loss_rows_hopper.cu")
    assert reasons <= emulated_barriers.met() and len(reasons) == 8
    assert not emulated_barriers.not_missed(
        reasons, lambda: all(torch.equal(a, b) for a, b in zip(usual, run())), monkeypatch
    )
