"""position_loss against a float64 oracle, in every backend that runs here."""

import importlib
import types

import pytest
import torch
from kernel_checks import DTYPES, assert_as_good, leaves, narrow
from loss_cases import CASES, IGNORE, LENGTH, ordinary, token_losses

import emergence_kernels as ek
from emergence_kernels.backends.library import unsupported_reason
from emergence_kernels.cross_entropy import reference
from emergence_kernels.cross_entropy.options import LossInputs, RowOptions
from emergence_kernels.cross_entropy.position_loss import _scaled

Z_LOSS = 1e-3


def weighted(hidden, weight, targets, weights):
    loss, lse, *_ = token_losses(hidden, weight, targets)
    share = (targets != IGNORE).to(torch.float64) * (1.0 if weights is None else weights.double())
    total = share.sum()
    return (share / torch.where(total > 0, total, 1) * (loss + Z_LOSS * lse.square()).double()).sum()


def weights_for(kind, B, T):
    if kind == "position":
        return torch.rand(T) * 2
    if kind == "token":
        weights = torch.rand(B, T)
        weights[0, : T // 2] = 0
        return weights
    return None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_against_float64(case, dtype, backend, device):
    inputs = CASES[case]().to(dtype, device)
    B, T = inputs.targets.shape
    kind = {"ordinary": None, "half ignored": "position"}.get(case, "token")
    weights = weights_for(kind, B, T)
    weights = None if weights is None else weights.to(device)
    upstream = -2.5 if case == "strided" else 0.37
    hidden, weight = inputs.hidden.detach().requires_grad_(), inputs.weight.detach().requires_grad_()
    out = ek.position_loss(
        hidden, weight, inputs.targets, weights=weights, z_loss=Z_LOSS, ignore_index=IGNORE, backend=backend
    )
    got = [out.loss.detach(), *torch.autograd.grad(out.loss * upstream, (hidden, weight))]
    exact, plain = [], []
    for results, kept in ((exact, torch.float64), (plain, dtype)):
        x, w = leaves(inputs.hidden, inputs.weight, dtype=kept)
        loss = weighted(x, w, inputs.targets, weights)
        results += [loss.detach(), *torch.autograd.grad(loss * upstream, (x, w))]
    assert out.loss.dtype == torch.float32
    assert_as_good("loss", got[0].double(), exact[0], plain[0], floor=1e10)  # float32 result: eps of float64 x 1e10
    assert_as_good("d hidden", got[1], exact[1], plain[1])
    assert_as_good("d weight", got[2], exact[2], plain[2])

    loss, _, correct, entropy = token_losses(inputs.hidden.double(), inputs.weight.double(), inputs.targets)
    loss_plain, _, _, entropy_plain = token_losses(inputs.hidden, inputs.weight, inputs.targets)
    assert_as_good("token loss", out.token_loss, loss, loss_plain)
    sums = out.positions
    assert torch.equal(sums.count, (inputs.targets != IGNORE).sum(0))
    assert sums.count.dtype == sums.correct.dtype == torch.int64
    assert torch.equal(sums.correct, correct.sum(0))
    assert torch.equal(sums.loss_sum, out.token_loss.double().sum(0))
    assert torch.equal(sums.loss_sq_sum, out.token_loss.double().square().sum(0))
    assert sums.entropy_sum.dtype == torch.float64
    error = (sums.entropy_sum - entropy.sum(0)).abs().max()
    assert error <= 2 * (entropy_plain.double() - entropy).abs().max() * B + 1e-5 * B


def test_gradient_of_a_confident_target(backend, device):
    """At p = 0.9964 the target's gradient is p - 1: formed after rounding p to bfloat16 it would be wrong by 9%."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32)[-1 if backend == "cpu" else 0 :]:
        hidden = torch.tensor([[[7.0, 0, 0, 0, 0, 0, 0, 0]]], dtype=dtype, device=device, requires_grad=True)
        weight = torch.eye(8, dtype=dtype, device=device).requires_grad_()  # logits 7, 0, 0 ... are exact
        targets = torch.zeros(1, 1, dtype=torch.int64, device=device)
        weights = torch.tensor([0.3], device=device)
        loss = ek.position_loss(hidden, weight, targets, weights=weights, backend=backend).loss
        loss.backward()
        p = torch.softmax(hidden.detach().double(), -1)[0, 0]
        exact = p - torch.eye(8, device=device)[0]
        tolerance = 1e-4 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps  # p itself carries float32's eps
        assert torch.allclose(hidden.grad[0, 0].double(), exact, rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_chunks_do_not_matter(dtype, backend, device):
    """The same rows in chunks of 1, 16 and all: losses to the bit, dW within the accumulation's rounding."""
    inputs = CASES["edges ignored"]().to(dtype, device)
    if backend == "triton":
        from emergence_kernels.cross_entropy.triton import fused_rows
    else:
        fused_rows = reference.fused_rows
    hidden, targets = inputs.hidden.flatten(0, 1), inputs.targets.flatten()
    given = LossInputs(hidden, inputs.weight, targets, targets != IGNORE)
    scale = torch.rand(len(targets), device=device)
    results = [
        fused_rows(given, scale, RowOptions(need_dx=True, need_dw=True, rows_per_chunk=rows)) for rows in (None, 16, 7)
    ]
    (rows, dx, dw), *others = results
    eps = torch.finfo(dtype).eps
    for other_rows, other_dx, other_dw in others:
        for name in ("loss", "lse", "entropy"):
            assert torch.allclose(getattr(rows, name), getattr(other_rows, name), rtol=1e-5, atol=1e-5), name
        assert torch.equal(rows.correct, other_rows.correct)
        # Matrix products of other shapes may add in another order.
        assert (dx - other_dx).abs().max() <= 16 * eps * dx.abs().max()
        assert (dw - other_dw).abs().max() <= 16 * eps * dw.abs().max()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", [None, "position", "token"])
def test_a_cpu_has_one_result_at_once_and_in_chunks(kind, case, monkeypatch):
    """Of one chunk all between its products is one operation; rows beyond it come chunk by chunk, without those ignored."""
    if unsupported_reason("cpu", torch.device("cpu")):
        pytest.skip("csrc/cpu is not built")
    inputs = CASES[case]().to(torch.float32, "cpu")
    weights, results = weights_for(kind, *inputs.targets.shape), []
    for at_once in (True, False):
        monkeypatch.setattr("emergence_kernels.cross_entropy.cpu.fits", lambda *_, once=at_once: once)
        x, w = leaves(inputs.hidden, inputs.weight, dtype=torch.float32)
        out = ek.position_loss(x, w, inputs.targets, weights=weights, z_loss=Z_LOSS, ignore_index=IGNORE, backend="cpu")
        with torch.no_grad():
            seen = ek.position_loss(
                x, w, inputs.targets, weights=weights, z_loss=Z_LOSS, ignore_index=IGNORE, backend="cpu"
            )
        assert not seen.loss.requires_grad
        torch.testing.assert_close(seen, type(out)(out.loss.detach(), *out[1:]), rtol=1e-6, atol=0)
        results.append((out.loss.detach(), out.token_loss, *out.positions, *torch.autograd.grad(out.loss * 3, (x, w))))
    torch.testing.assert_close(*results, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [3, 7, 100])
def test_mean_of_equal_losses_is_that_loss(rows, backend, device):
    """To the bit: it is summed in float64, by shares that are no power of two."""
    weight = torch.tensor([[0.3], [0.1], [-0.7]], device=device)
    targets = torch.zeros(1, rows, dtype=torch.int64, device=device)
    out = ek.position_loss(torch.ones(1, rows, 1, device=device), weight, targets, backend=backend)
    assert (out.token_loss == out.loss).all()


def test_many_chunks_add_up_in_float32(backend, device):
    """128 chunks of bfloat16 products, all of one sign: a sum kept in bfloat16 would be off by 2%."""
    if backend == "triton":
        from emergence_kernels.cross_entropy import triton as module
    else:
        module = reference
    N, D, V = 128, 8, 16
    hidden = (1 + 0.1 * torch.randn(N, D, device=device)).bfloat16()
    weight = (torch.randn(V, D, device=device) * 0.1).bfloat16()
    targets = torch.zeros(N, dtype=torch.int64, device=device)
    inputs, scale = LossInputs(hidden, weight, targets, targets == 0), torch.full((N,), 1 / N, device=device)
    options = RowOptions(need_dw=True, rows_per_chunk=1)
    _, _, fused = module.fused_rows(inputs, scale, options)
    kept = module.forward_rows(inputs, RowOptions())[1:]
    _, recomputed = module.backward_rows(inputs, *kept, scale, options)
    (w,) = leaves(weight, dtype=torch.float64)
    token_losses(hidden.double(), w, targets)[0].mean().backward()
    for dw in (fused, recomputed):
        assert (dw.double() - w.grad).norm() <= 0.004 * w.grad.norm()


@pytest.mark.parametrize("split", [False, True], ids=["whole", "in halves"])
def test_tensor_descriptors(split, triton_only, device, monkeypatch):
    """Candidates of the tile table: operands by tensor descriptors, and tiles finished in halves."""
    import dataclasses

    from emergence_kernels.backends import triton_configs as configs

    if configs.architecture(device) == "sm_80":
        pytest.skip("tensor descriptors need sm_90")
    inputs = ordinary(D=40).to(torch.bfloat16, device)
    key = configs.architecture(device), 2, False
    usual = configs.LOGITS[key]
    results = []
    for config in (usual, dataclasses.replace(usual, descriptors=True, split=split)):
        monkeypatch.setitem(configs.LOGITS, key, config)
        hidden, weight = leaves(inputs.hidden, inputs.weight)
        out = ek.position_loss(hidden, weight, inputs.targets, backend="triton")
        tokens = ek.linear_cross_entropy(hidden, weight, inputs.targets, backend="triton")
        gradients = torch.autograd.grad(out.loss + tokens.square().mean(), (hidden, weight))
        results.append((out.token_loss, out.positions.entropy_sum.float(), tokens, *gradients))
    for a, b in zip(*results):
        assert (a - b).norm() <= 2e-3 * a.norm()


def test_logits_in_bfloat16(triton_only, device, monkeypatch):
    """The error is that of rounding z to 8 bits: 2^-9 of a logit in the loss, as much of p in the gradients."""
    from emergence_kernels.backends import triton_configs as configs

    monkeypatch.setitem(configs.LOGITS_DTYPE, configs.architecture(device), torch.bfloat16)
    hidden, weight = torch.randn(1, 6, 24, device=device).bfloat16(), torch.randn(9001, 24, device=device).bfloat16()
    targets = torch.tensor([[0, 9000, -100, 4711, 8192, 17]], device=device)
    x, w = leaves(hidden, weight, dtype=torch.float64)
    z = x @ w.t()
    tokens = torch.nn.functional.cross_entropy(z[0], targets[0], reduction="none")
    exact = torch.autograd.grad(tokens.sum() / 5, (x, w))
    x, w = leaves(hidden, weight)
    out = ek.position_loss(x, w, targets, backend="triton")
    bound = 2.0**-9 * z.abs().max().item()
    error = (out.token_loss[0].double() - tokens).abs().max()
    assert 0.01 * bound < error <= 2 * bound  # below: not taken
    for a, b in zip(torch.autograd.grad(out.loss, (x, w)), exact):
        assert (a.double() - b).norm() <= (2 * bound + 0.01) * b.norm()


def test_bits_repeat(backend, device):
    inputs = ordinary().to(narrow(backend), device)

    def run():
        hidden, weight = leaves(inputs.hidden, inputs.weight)
        out = ek.position_loss(hidden, weight, inputs.targets, backend=backend)
        return out.loss, out.token_loss, *out.positions, *torch.autograd.grad(out.loss, (hidden, weight))

    assert all(torch.equal(a, b) for a, b in zip(run(), run()))


def test_rows_without_a_batch_are_one_sequence(backend, device):
    inputs = CASES["half ignored"]().to(torch.float32, device)
    hidden, targets = inputs.hidden[:1], inputs.targets[:1]
    weights = torch.linspace(0, 1, targets.shape[1], device=device)
    ours, whole = (
        ek.position_loss(hidden.view(shape), inputs.weight, targets.view(shape[:-1]), weights=weights, backend=backend)
        for shape in (hidden.shape[1:], hidden.shape)
    )
    assert ours.token_loss.shape == targets.shape[1:] and torch.equal(ours.token_loss, whole.token_loss[0])
    assert torch.equal(ours.loss, whole.loss)
    assert all(torch.equal(a, b) for a, b in zip(ours.positions, whole.positions))


def test_second_backward(backend, device):
    inputs = ordinary().to(torch.float32, device)
    hidden, weight = leaves(inputs.hidden, inputs.weight)
    loss = ek.position_loss(hidden, weight, inputs.targets, backend=backend).loss
    loss.backward(retain_graph=True)
    once = hidden.grad.clone(), weight.grad.clone()
    hidden.grad.mul_(0)  # must not reach what was saved
    weight.grad.mul_(0)
    (2 * loss).backward()
    assert torch.equal(hidden.grad, 2 * once[0]) and torch.equal(weight.grad, 2 * once[1])
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_the_last_backward_leaves_what_earlier_ones_gave(backend, device):
    """It may write over what was saved, and nothing else."""
    inputs = ordinary().to(torch.float32, device)
    hidden, weight = leaves(inputs.hidden, inputs.weight)
    loss = ek.position_loss(hidden, weight, inputs.targets, backend=backend).loss
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    kept = [g.clone() for g in first]
    last = torch.autograd.grad(3 * loss, (hidden, weight))
    assert all(torch.equal(a, b) for a, b in zip(first, kept))
    assert all(torch.allclose(a, 3 * b, rtol=1e-6) for a, b in zip(last, kept))
    assert not {t.data_ptr() for t in (*first, *last)} & {hidden.data_ptr(), weight.data_ptr()}


def test_only_what_is_needed(backend, device):
    inputs = ordinary().to(torch.float32, device)
    with torch.no_grad():
        hidden, weight = leaves(inputs.hidden, inputs.weight)
        silent = ek.position_loss(hidden, weight, inputs.targets, backend=backend)
    assert not silent.loss.requires_grad
    hidden, weight = leaves(inputs.hidden, inputs.weight)
    full = ek.position_loss(hidden, weight, inputs.targets, backend=backend)
    assert not full.token_loss.requires_grad and not any(t.requires_grad for t in full.positions)
    for quiet, loud in ((silent.token_loss, full.token_loss), (silent.loss, full.loss)):
        # Triton makes the logits of an evaluation itself: they are summed in another order.
        assert torch.allclose(quiet, loud, rtol=2e-6, atol=2e-6) if backend == "triton" else torch.equal(quiet, loud)
    full.loss.backward()
    (frozen,) = leaves(inputs.hidden)
    ek.position_loss(frozen, inputs.weight, inputs.targets, backend=backend).loss.backward()
    assert torch.allclose(frozen.grad, hidden.grad)
    (head,) = leaves(inputs.weight)
    ek.position_loss(inputs.hidden, head, inputs.targets, backend=backend).loss.backward()
    assert torch.allclose(head.grad, weight.grad)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in the interpreter
@pytest.mark.parametrize("with_gradient", [True, False])
def test_what_is_not_a_number_stays_so(with_gradient, backend, device):
    """In loss, entropy and gradient of its row, and of no other: of a row of NaN, and of one whose last logit alone is NaN."""
    inputs = ordinary(B=1, T=4, D=8, V=40)
    inputs.hidden[..., :2] = inputs.weight[:, :2] = 0
    inputs.weight[39, :2] = torch.tensor([1e30, -1e30])
    inputs.hidden[0, 1, 4] = torch.nan
    inputs.hidden[0, 2, :2] = 1e30  # inf - inf
    inputs.targets[:] = 7
    hidden, weight, targets = (t.to(device) for t in (inputs.hidden, inputs.weight, inputs.targets))
    hidden.requires_grad_(with_gradient)
    out = ek.position_loss(hidden, weight, targets, backend=backend)
    rows = [out.token_loss[0], out.positions.loss_sum, out.positions.entropy_sum]
    if with_gradient:
        rows += torch.autograd.grad(out.loss, hidden)[0][0].unbind(-1)
    assert out.loss.isnan() and all(row.isnan().tolist() == [False, True, True, False] for row in rows)


@pytest.mark.parametrize("cause", ["every token ignored", "every weight zero"])
def test_nothing_counts(cause, backend, device):
    inputs = ordinary().to(torch.float32, device)
    weights = None
    if cause == "every token ignored":
        inputs.targets.fill_(IGNORE)
    else:
        weights = torch.zeros(LENGTH, device=device)
    hidden, weight = leaves(inputs.hidden, inputs.weight)
    out = ek.position_loss(hidden, weight, inputs.targets, weights=weights, z_loss=Z_LOSS, backend=backend)
    assert out.loss.item() == 0 and out.loss.requires_grad
    out.loss.backward()
    assert not hidden.grad.any() and not weight.grad.any()
    assert (out.positions.count.sum() == 0) == (cause == "every token ignored")


def test_no_tokens(backend, device):
    hidden = torch.randn(0, 5, 8, device=device, requires_grad=True)
    weight = torch.randn(11, 8, device=device, requires_grad=True)
    out = ek.position_loss(hidden, weight, torch.zeros(0, 5, dtype=torch.int64, device=device), backend=backend)
    out.loss.backward()
    assert out.loss.item() == 0 and hidden.grad.shape == (0, 5, 8) and not weight.grad.any()
    assert out.positions.count.tolist() == [0] * 5


@pytest.mark.parametrize("dtype", [torch.float16], ids=str)
def test_float16_keeps_small_gradients(dtype, backend, device):
    """1 / tokens times p is below float16's smallest number until the loss scale is applied in backward."""
    inputs = ordinary(B=4, T=64, D=16, V=61).to(dtype, device)
    hidden, weight = leaves(inputs.hidden, inputs.weight)
    scale = 65536.0
    (ek.position_loss(hidden, weight, inputs.targets, backend=backend).loss * scale).backward()
    x, w = leaves(inputs.hidden, inputs.weight, dtype=torch.float64)
    (token_losses(x, w, inputs.targets)[0].mean() * scale).backward()
    assert (hidden.grad.double() - x.grad).norm() <= 2e-3 * x.grad.norm()
    assert (weight.grad.double() - w.grad).norm() <= 2e-3 * w.grad.norm()


def test_a_tied_head(backend, device):
    """One Parameter, two uses: its gradient is the sum of both."""
    embedding = torch.nn.Embedding(43, 16, device=device)
    head = ek.LMHead(embedding=embedding)
    assert head.weight is embedding.weight and len({id(p) for p in [*head.parameters(), *embedding.parameters()]}) == 1
    tokens = torch.randint(43, (2, 9), device=device)
    head(embedding(tokens), tokens.roll(-1, 1), backend=backend).loss.backward()
    (weight,) = leaves(embedding.weight, dtype=torch.float64)
    token_losses(weight[tokens], weight, tokens.roll(-1, 1))[0].mean().backward()
    assert torch.allclose(embedding.weight.grad.double(), weight.grad, rtol=1e-4, atol=1e-6)
    assert head(embedding(tokens)).shape == (2, 9, 43)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_upstream_scalar_is_not_rounded(dtype, backend, device):
    """A third of a loss is a third of its gradient, rounded element by element, not by one rounded third."""
    inputs = ordinary().to(dtype, device)
    hidden, weight = leaves(inputs.hidden, inputs.weight)
    loss = ek.position_loss(hidden, weight, inputs.targets, backend=backend).loss
    whole = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    third = torch.autograd.grad(loss / 3, (hidden, weight))
    for a, b in zip(whole, third):
        ratio = (b.double() * a.double()).sum() / a.double().square().sum()
        assert ratio.item() == pytest.approx(1 / 3, rel=2e-4)  # a third in bfloat16 is off by 1.3e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_opcheck(dtype, backend, device):
    inputs = ordinary(B=1, T=5, D=16, V=33).to(dtype, device)
    hidden, weight = leaves(inputs.hidden.flatten(0, 1), inputs.weight)
    arguments = (hidden, weight, inputs.targets.flatten(), None, IGNORE, 0.0, True, True, backend)
    torch.library.opcheck(torch.ops.emergence_kernels.position_loss, arguments)


def test_whole_graph(backend, device):
    inputs = ordinary(T=7).to(torch.float32, device)

    def step(hidden, weight):
        out = ek.position_loss(hidden * 1.0, weight, inputs.targets, z_loss=Z_LOSS, backend=backend)
        return out.loss * 3, out.token_loss, out.positions.loss_sum

    eager, compiled = [], []
    for results, run in ((eager, step), (compiled, torch.compile(step, fullgraph=True, backend="aot_eager"))):
        hidden, weight = leaves(inputs.hidden, inputs.weight)
        out = run(hidden, weight)
        out[0].backward()
        results += [*out, hidden.grad, weight.grad]
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(eager, compiled))


def test_wrong_arguments(device):
    hidden, weight = torch.randn(2, 3, 8, device=device), torch.randn(11, 8, device=device)
    targets = torch.zeros(2, 3, dtype=torch.int64, device=device)
    for arguments, options, message in [
        ((hidden[None], weight, targets[None]), {}, r"\(\[batch,\] seq, features\)"),
        ((hidden, weight[:, :5], targets), {}, "8 features but weight has 5"),
        ((hidden, weight[:, :0].reshape(0, 0)[:, :0], targets), {}, "ZeRO-3"),
        ((hidden, weight, targets[:1]), {}, "targets have shape"),
        ((hidden, weight.double(), targets), {}, "dtype"),
        ((hidden.int(), weight, targets), {}, "dtype"),
        ((hidden, weight, targets.float()), {}, "int64 or int32"),
        ((hidden, weight, targets), {"weights": torch.ones(4, device=device)}, "weights have shape"),
        ((hidden, weight, targets), {"weights": torch.ones(3, device=device, requires_grad=True)}, "constants"),
    ]:
        with pytest.raises(ValueError, match=message):
            ek.position_loss(*arguments, **options)


def test_wrong_values(device, monkeypatch):
    monkeypatch.setenv("EMERGENCE_KERNELS_DEBUG", "1")
    hidden, weight = torch.randn(2, 3, 8, device=device), torch.randn(11, 8, device=device)
    targets = torch.full((2, 3), 11, device=device)
    with pytest.raises(ValueError, match="target 11 is outside the vocabulary of 11"):
        ek.position_loss(hidden, weight, targets)
    with pytest.raises(ValueError, match="not negative"):
        ek.position_loss(hidden, weight, targets * 0, weights=torch.tensor([1.0, -1.0, 1.0], device=device))


def test_a_target_outside_reads_nothing_wild(triton_only, device, monkeypatch):
    """What the kernels do when nobody checked: an infinite loss."""
    monkeypatch.setattr("emergence_kernels.backends.checks.checks_values", lambda device: False)
    hidden, weight = torch.randn(1, 3, 8, device=device), torch.randn(11, 8, device=device)
    targets = torch.tensor([[1, 5000, 2]], device=device)
    out = ek.position_loss(hidden, weight, targets, backend="triton")
    assert out.token_loss.isinf().tolist() == [[False, True, False]]


def test_targets_at_the_edges_are_outside(triton_only, device, monkeypatch):
    """Just behind the vocabulary, within the last tile, and in front of it; by both kernels."""
    monkeypatch.setattr("emergence_kernels.backends.checks.checks_values", lambda device: False)
    targets, outside = torch.tensor([3, 70, 73, -7], device=device), [False, True, True, True]
    hidden, weight = torch.randn(4, 8, device=device), torch.randn(70, 8, device=device)
    assert ek.linear_cross_entropy(hidden, weight, targets, backend="triton").isinf().tolist() == outside
    out = ek.position_loss(hidden.requires_grad_(), weight, targets, backend="triton")
    assert out.token_loss.isinf().tolist() == outside
    (dx,) = torch.autograd.grad(out.loss, hidden)
    p = torch.softmax(hidden.detach().double() @ weight.double().t(), -1)
    p[0, 3] -= 1  # the others' targets are no logit's
    assert torch.allclose(dx.double(), p @ weight.double() / 4, atol=1e-5)


@pytest.mark.parametrize("last", [False, True])
def test_saved_gradients_are_returned_in_their_dtype(last, backend, device):
    """A float32 sum of several chunks, of a weight in 16 bits; in place where nothing is converted."""
    factor = torch.tensor(3.0, device=device)
    for saved in (torch.float32, torch.bfloat16):
        x = torch.randn(50, 8, device=device).to(saved)
        wanted = (x.float() * 3).bfloat16()
        scaled = _scaled(x, factor, torch.bfloat16, backend, last=last)
        assert scaled.dtype == torch.bfloat16 and torch.allclose(scaled.float(), wanted.float(), rtol=2**-7)
        assert (scaled is x) == (last and saved == torch.bfloat16) or device.type != "cpu"


@pytest.mark.parametrize("greatest", [1.0, 3e-6])
def test_float16_shares_are_scaled_to_about_one(greatest, device, monkeypatch):
    """1 / tokens times p underflows in float16: kernels see the shares times a power of two, which backward takes out."""
    module = importlib.import_module("emergence_kernels.cross_entropy.position_loss")
    scales = []

    def fused_rows(*given):
        scales.append(given[-2])  # before the options
        return reference.fused_rows(*given)

    monkeypatch.setattr(module, "rows_of", lambda backend: types.SimpleNamespace(fused_rows=fused_rows))
    hidden, weight = leaves(*(torch.randn(shape, device=device).half() for shape in ((1, 400, 8), (11, 8))))
    weights = torch.full((400,), greatest, device=device)
    targets = torch.zeros(1, 400, dtype=torch.long, device=device)
    loss = ek.position_loss(hidden, weight, targets, weights=weights, backend="torch").loss
    dx, dw = torch.autograd.grad(loss, (hidden, weight))
    assert 0.5 <= scales[0].max() <= 1
    x, w = leaves(hidden, weight, dtype=torch.float64)
    exact = torch.autograd.grad(token_losses(x, w, targets)[0].mean(), (x, w))
    assert (dw.double() - exact[1]).norm() <= 2e-3 * exact[1].norm()
    assert (dx.double() - exact[0]).abs().max() <= 2**-24 + 2**-10 * exact[0].abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=str)
def test_autocast(dtype, backend, device):
    inputs = ordinary().to(torch.float32, device)
    hidden, weight = leaves(inputs.hidden, inputs.weight)
    with torch.autocast(device.type, dtype):
        loss = ek.position_loss(hidden, weight, inputs.targets, backend=backend).loss
    loss.backward()
    cast = ek.position_loss(inputs.hidden.to(dtype), inputs.weight.to(dtype), inputs.targets, backend=backend).loss
    assert torch.equal(loss, cast) and hidden.grad.dtype == torch.float32
