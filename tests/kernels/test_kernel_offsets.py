"""Rows of csrc/'s operations that lie more than 2^31 elements apart, in memory that is not touched between them.

Launches of Triton's kernels are in test_kernel_launches.py.
"""

import pytest
import torch
from kernel_checks import narrow

import emergence_kernels as ek
from emergence_kernels.attention import hopper as attention_hopper
from emergence_kernels.attention.options import Options, Saved
from emergence_kernels.backends.library import operations

APART = (1 << 30) + 8  # elements: row 2 is beyond 2^31, at a multiple of 16 bytes


def far(t, axis):
    """t's values, APART along the axis."""
    strides = list(t.contiguous().stride())
    strides[axis] = APART
    return torch.empty(t.shape[axis] * APART, dtype=t.dtype, device=t.device).as_strided(t.shape, strides).copy_(t)


def rotated(x, backend):
    angles = torch.linspace(0, 3, x.shape[1] * 8, device=x.device).view(-1, 8)
    return ek.rotary(x, angles.cos(), angles.sin(), backend=backend)


CASES = {
    "rms_norm": (lambda x, backend: ek.rms_norm(x, torch.ones_like(x[0]), backend=backend), (3, 16), 0),
    "swiglu": (lambda x, backend: ek.swiglu(x, backend=backend), (3, 32), 0),
    "sequences of rotary": (rotated, (3, 2, 1, 16), 0),
    "tokens of rotary": (rotated, (1, 3, 1, 16), 1),
    "sequences of attention": (lambda x, backend: ek.attention(x, x, x, backend=backend), (3, 4, 1, 64), 0),
    "tokens of attention": (lambda x, backend: ek.attention(x, x, x, backend=backend), (1, 3, 1, 64), 1),
}


@pytest.mark.parametrize("case", CASES)
def test_rows_beyond_two_to_the_31(case, compiled, device):
    op, shape, axis = CASES[case]
    x = torch.randn(shape).to(device, narrow(compiled))
    upstream = torch.randn(op(x, compiled).shape).to(x)
    results = []
    for place in (torch.clone, lambda t: far(t, axis)):
        tracked = place(x).requires_grad_()
        out = op(tracked, compiled)
        results.append([out, *torch.autograd.grad(out, tracked, place(upstream))])
    assert all(torch.equal(near, distant) for near, distant in zip(*results))


def test_logits_beyond_two_to_the_31(compiled, device):
    """In place: of the loss and its gradient at once, and of the gradient alone."""
    z = torch.randn(3, 16).to(device, narrow(compiled))
    targets, valid = torch.arange(3, device=device), torch.ones(3, dtype=torch.bool, device=device)
    results = []
    for place in (torch.clone, lambda t: far(t, 0)):
        at_once, alone, rows, correct = place(z), place(z), torch.empty(4, 3, device=device), torch.empty_like(valid)
        loss, top, log_total, entropy = rows
        given = 16, targets, valid, torch.ones(3, device=device)
        run = operations(compiled)
        run.loss_rows(at_once, at_once, *given, loss, top, log_total, correct, entropy, 0.0, 0.0)
        run.loss_rows_gradient(alone, alone, *given, top, log_total, 0.0, 0.0)
        results.append([rows, correct, at_once, alone])
    assert all(torch.equal(near, distant) for near, distant in zip(*results))


@pytest.mark.parametrize("shape, axis", [((3, 4, 1, 64), 0), ((1, 3, 1, 64), 1)], ids=["sequences", "tokens"])
def test_hopper_beyond_two_to_the_31(shape, axis, hopper, device):
    x, upstream = (torch.randn(shape).to(device, torch.bfloat16) for _ in range(2))
    results = []
    for place in (torch.clone, lambda t: far(t, axis)):
        q = place(x)
        out, lse = attention_hopper.forward(q, q, q, Options())
        saved = Saved(q, q, q, out, lse)
        results.append([out, *attention_hopper.backward(place(upstream), saved, Options(deterministic=True))])
    assert all(torch.equal(near, distant) for near, distant in zip(*results))
