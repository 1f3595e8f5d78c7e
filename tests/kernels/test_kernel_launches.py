"""Launches of Triton's kernels over more than 2^31 elements: their grids, and what their last programs compute.

Only a grid's first axis may be longer than 65,535, and 32-bit offsets wrap. In the interpreter, on memory of which only the last
rows are touched: each kernel is replaced by one that runs its last programs alone, with overflow of integers an error.
"""

import dataclasses
import importlib
import itertools
import pkgutil
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from attention_cases import plain as plain_attention
from compiled import COMPILED
from rotary_cases import plain as plain_rotary

import emergence_kernels as ek

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.skipif(COMPILED, reason="a choice of programs is for the interpreter"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # of rows whose programs do not run
]
HALF = torch.float16
PROGRAMS = 4  # those that run: the last ones; attention's backward kernels read what several programs of others wrote
KERNELS = {}  # name -> the modules whose launches use it
for _info in pkgutil.walk_packages(ek.__path__, "emergence_kernels."):
    if ".triton" in _info.name:
        _module = importlib.import_module(_info.name)
        for _name, _value in vars(_module).items():
            if _name.endswith("_kernel") and hasattr(_value, "fn"):
                KERNELS.setdefault(f"{_value.fn.__module__.split('.')[1]} {_name}", []).append((_module, _name))


def _set(target, name, value, *_):
    setattr(target, name, value)


class LastPrograms:
    """Stands for a kernel."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        def launch(*arguments, **constants):
            from triton.runtime import interpreter

            assert grid[0] < 2**31 and max(grid[1:], default=1) <= 65535
            self.launches.append(SimpleNamespace(grid=grid, arguments=arguments))
            last = [range(max(0, grid[0] - PROGRAMS), grid[0]), *(range(size - 1, size) for size in grid[1:])]
            builder = interpreter.interpreter_builder
            for index in itertools.product(*last):
                with pytest.MonkeyPatch.context() as patch:
                    for name, value in (("dim", (*grid, 1, 1)[:3]), ("idx", (*index, 0, 0)[:3])):
                        patch.setattr(builder, f"set_grid_{name}", partial(_set, builder, f"grid_{name}", value))
                    # for tensors on a device: here it would copy all of a tensor onto itself
                    patch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
                    self.kernel[(1,)](*arguments, **constants)

        return launch


@pytest.fixture
def launched(monkeypatch):
    """(name of a kernel) -> its launches."""
    from triton.runtime import interpreter

    from emergence_kernels.backends import triton_configs

    launches = {name: [] for name in KERNELS}
    for name, places in KERNELS.items():
        for module, attribute in places:
            monkeypatch.setattr(module, attribute, LastPrograms(getattr(module, attribute), launches[name]))
    builder = interpreter.interpreter_builder
    options = dataclasses.replace(builder.options, sanitize_overflow=True, debug=True)
    monkeypatch.setattr(builder, "options", options)
    # one step for each program: the last programs of a persistent kernel then have the last rows
    monkeypatch.setattr(triton_configs, "persistent_programs", lambda *_: 2**31 - 1)
    return launches


def untouched(*shape, dtype=HALF, rows=1):
    """Memory that is not there until it is written, but for the last rows of the first axis: random."""
    t = torch.empty(shape, dtype=dtype)
    t[-rows:] = torch.randn(rows, *shape[1:]) if dtype.is_floating_point else 0
    return t


def close(got, wanted, error=2e-3):
    return (got.double() - wanted.double()).norm() <= error * wanted.double().norm() > 0


def rms_norm():
    from emergence_kernels.rms_norm import triton

    N, D = (1 << 19) + 1, 4096
    x, residual, dy, d_residual = (untouched(N, D) for _ in range(4))
    weight = torch.randn(D, dtype=HALF)
    y, total, rstd = triton.forward(x, weight, 1e-6, residual)
    last = [t[-1:].double().requires_grad_() for t in (x, residual)]
    wide = weight.double().requires_grad_()
    exact, exact_total = ek.rms_norm(last[0], wide, residual=last[1], backend="torch")
    assert close(y[-1:], exact.detach()) and close(total[-1:], exact_total.detach())
    rstd[:-PROGRAMS] = 0  # small enough to be memory that was used before
    dx, dweight = triton.backward(dy, d_residual, total, weight, rstd)
    upstream = [t[-1:].double() for t in (dy, d_residual)]
    wanted = torch.autograd.grad((exact, exact_total), (last[0], wide), upstream)
    assert close(dx[-1:], wanted[0]) and close(dweight[-32:], wanted[1][-32:])


def swiglu():
    from emergence_kernels.swiglu import triton

    N, F = (1 << 21) + 1, 1024
    x, dy = untouched(N, 2 * F), untouched(N, F)
    last = x[-1:].double().requires_grad_()
    exact = ek.swiglu(last, backend="torch")
    assert close(triton.forward(x)[-1:, -F:], exact.detach())
    assert close(triton.backward(dy, x)[-1:], *torch.autograd.grad(exact, last, dy[-1:].double()))


# (B, T, H), and whether heads are the outermost axis in memory
HEADS = {
    "tokens": (1, 2**20 + 16, 16, False),
    "sequences": (2**16 + 4, 17, 16, False),
    "heads": (1, 2**18 + 16, 80, True),
}


def of_heads(place, D=128):
    B, T, H, outermost = HEADS[place]
    t = torch.empty(H, B, T, D, dtype=HALF).permute(1, 2, 0, 3) if outermost else torch.empty(B, T, H, D, dtype=HALF)
    t[-1, -256:] = torch.randn(min(256, T), H, D)
    return t


def rotary(place):
    from emergence_kernels.rotary import triton

    B, T, H, _ = HEADS[place]
    angle = untouched(B, T, 8, dtype=torch.float32) if B > 1 else untouched(T, 8, dtype=torch.float32)
    cos, sin = angle.cos(), angle.sin()
    last = cos.view(-1, 8)[-1:], sin.view(-1, 8)[-1:]
    q, k, v = (of_heads(place) for _ in range(3))
    y = triton.rotate(q, cos, sin, 1.0)
    assert close(y[-1, -1:, -1:], plain_rotary(q[-1, -1:, -1:].double(), *last))
    out = torch.empty(B, T, 3 * H, 128, dtype=HALF)
    triton.join(q, k, v, cos, sin, out)
    assert torch.equal(out[-1, -1, -1], v[-1, -1, -1])


def attention(place):
    B, T, H, _ = HEADS[place]
    window, near = 8, min(64, T)
    q, k, v, upstream = (of_heads(place) for _ in range(4))
    tracked = [t.requires_grad_() for t in (q, k, v)]
    out = ek.attention(*tracked, causal=False, window=window, backend="triton")
    got = [out.detach(), *torch.autograd.grad(out, tracked, upstream)]
    copies = [t.detach()[-1:, -near:, -1:].double().requires_grad_() for t in tracked]
    exact = plain_attention(*copies, causal=False, window=window)
    wanted = [exact.detach(), *torch.autograd.grad(exact, copies, upstream[-1:, -near:, -1:].double())]
    assert all(close(a[-1:, -8:, -1:], b[:, -8:]) for a, b in zip(got, wanted))


def document_ranges():
    from emergence_kernels.attention import document_ranges as reference
    from emergence_kernels.attention import triton_document_ranges as triton

    ids = untouched(70_000, 1 << 15, dtype=torch.int16)
    ids[-1] = torch.arange(1 << 15) // 1000
    ranges = triton.block_ranges(ids, 128, 128, equal=True)
    assert torch.equal(ranges[-1, -1], reference.overlapping_and_equal_blocks(ids[-1:], 128, 128)[0, -1])


def adamw():
    from emergence_kernels.adamw import reference, triton

    N, settings = 2**31 + 5, dict(lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    state = [untouched(N, dtype=torch.float32, rows=5) for _ in range(4)]
    state[3][-5:].square_()
    scalars = torch.tensor([0.1, 0.05]), torch.tensor(2.0), torch.tensor(True)
    copy, wanted = torch.empty(N, dtype=torch.bfloat16), [t[-5:].clone() for t in state]
    triton.adamw_step(*state, *scalars, copy, **settings)
    reference.adamw_step(*wanted, *scalars, None, **settings)
    assert all(torch.allclose(t[-5:], w, rtol=1e-5) for t, w in zip(state, wanted))
    assert torch.equal(copy[-5:], state[0][-5:].bfloat16())


def fp8_rows():
    from emergence_kernels.fp8_linear import reference, triton

    x = untouched((1 << 21) + 1, 1024)
    for ours, wanted in zip(triton.quantize_rows(x), reference.quantize_rows(x[-1:])):
        assert torch.equal(ours[-1:].float(), wanted.float())


def fp8_columns():
    from emergence_kernels.fp8_linear import reference, triton

    w = untouched((1 << 21) + 1, 1088)
    with pytest.MonkeyPatch.context() as patch:  # a sum over all of it
        patch.setattr(torch.linalg, "vector_norm", lambda t, *_, **__: t[-1:].abs().amax(0))
        q, _ = triton.quantize_columns(w)
    assert torch.equal(q[-64:, -1:].float(), reference.quantize_columns(w[-1:])[0][-64:].float())


def scale():
    from emergence_kernels.cross_entropy import triton_scale

    x = untouched(2**31 + 5, rows=5)
    y = triton_scale.scale(x, torch.tensor(3.0), HALF, in_place=False)
    assert torch.equal(y[-5:], x[-5:] * 3)


def statistics(launched):
    """The target's logit is what the last programs know all of."""
    hidden, weight = torch.randn(1, 16, 2048).half() / 32, untouched((1 << 20) + 1, 2048)
    ek.linear_cross_entropy(hidden, weight, torch.full((1, 16), 1 << 20), backend="triton")
    z_target = launched["cross_entropy _combine_kernel"][0].arguments[3]
    assert close(z_target, hidden[0].double() @ weight[-1].double())


def loss_rows():
    """One chunk of all rows, of whose products only the last row is computed, and no gradients."""
    from emergence_kernels.backends import triton_configs
    from emergence_kernels.cross_entropy import chunks

    N, V = (1 << 21) + 1, 1024
    hidden, weight, targets = untouched(N, 8).requires_grad_(), torch.randn(V, 8).half(), torch.full((N,), 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(triton_configs.CHUNK_BYTES, "interpreter", 1 << 40)
        patch.setattr(chunks, "logits", lambda x, w, out: out[-1:].copy_(x[-1:].float() @ w.t().float()))
        patch.setattr(chunks.Gradients, "add", lambda *_: None)
        loss = ek.position_loss(hidden, weight, targets, backend="triton").token_loss[-1:]
    exact = torch.nn.functional.cross_entropy(hidden[-1:].detach().double() @ weight.double().t(), targets[-1:])
    assert close(loss, exact.view(1))


CASES = {
    (rms_norm,): ("rms_norm _forward_kernel", "rms_norm _backward_kernel", "rms_norm _sum_shares_kernel"),
    (swiglu,): ("swiglu _swiglu_kernel", "swiglu _swiglu_backward_kernel"),
    **{(rotary, place): ("rotary _rotary_kernel", "rotary _join_kernel") for place in HEADS},
    **{
        (attention, place): tuple(f"attention _{part}_kernel" for part in ("forward", "delta", "dkdv", "dq"))
        for place in HEADS
    },
    (document_ranges,): ("attention _ranges_kernel",),
    (adamw,): ("adamw _adamw_kernel",),
    (fp8_rows,): ("fp8_linear _fp8_rows_kernel",),
    (fp8_columns,): ("fp8_linear _fp8_columns_kernel",),
    (scale,): ("cross_entropy _scale_kernel",),
    (statistics,): ("cross_entropy _statistics_kernel", "cross_entropy _combine_kernel"),
    (loss_rows,): ("cross_entropy _loss_rows_kernel",),
}


def test_every_kernel_has_a_case():
    assert {name for names in CASES.values() for name in names} == set(KERNELS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join([case[0].__name__, *case[1:]]))
def test_last_programs_beyond_two_to_the_31(case, launched):
    run, *arguments = case
    run(*([launched] if run is statistics else arguments))
    assert {name for name, launches in launched.items() if launches} == set(CASES[case])
