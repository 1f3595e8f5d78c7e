"""Compiled operations over batches whose length varies: one graph for all, with the results of eager mode."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import emergence_kernels as ek

LENGTHS = range(20, 32)
H, G, D, V = 4, 2, 16, 40  # query heads, key heads, features of a head, words
WIDTH = (H + 2 * G) * D


def _randn(*shape, dtype=torch.float32):
    return (0.3 * torch.randn(*shape)).to(dtype).requires_grad_()


def _documents(T):
    return (torch.arange(T) // 7).expand(2, T)


def _qkv(T):
    return _randn(2, T, H, D), _randn(2, T, G, D), _randn(2, T, G, D)


def _angles(T, *batch):
    angle = torch.rand(*batch, T, D // 2)
    return angle.cos(), angle.sin()


def _targets(T):
    return torch.randint(V, (2, T))


def _scores(q, k, v, sinks, alibi, backend):
    return ek.attention(q, k, v, softcap=5.0, sinks=sinks, alibi=alibi, backend=backend)


# name: (operation, inputs at a length)
CASES = {
    "rms_norm": (ek.rms_norm, lambda T: (_randn(2, T, WIDTH), _randn(WIDTH))),
    "rms_norm_residual": (
        lambda *args, backend: torch.cat(ek.rms_norm(*args[:2], residual=args[2], backend=backend)),
        lambda T: (_randn(2, T, WIDTH), _randn(WIDTH), _randn(2, T, WIDTH)),
    ),
    "swiglu": (ek.swiglu, lambda T: (_randn(2, T, WIDTH),)),
    "feed_forward": (ek.feed_forward, lambda T: (_randn(2, T, 32), _randn(96, 32), _randn(32, 48))),
    "fp8_linear": (
        ek.fp8_linear,
        lambda T: (_randn(2, T, 32, dtype=torch.bfloat16), _randn(48, 32, dtype=torch.bfloat16)),
    ),
    "rotary": (ek.rotary, lambda T: (_randn(2, T, H, D), *_angles(T))),
    "rotary_batch": (ek.rotary, lambda T: (_randn(2, T, H, D), *_angles(T, 2))),
    "attention": (ek.attention, _qkv),
    "attention_window": (lambda *qkv, backend: ek.attention(*qkv, window=5, backend=backend), _qkv),
    "attention_documents": (
        lambda *qkv, backend: ek.attention(*qkv[:3], document_ids=qkv[3], backend=backend),
        lambda T: (*_qkv(T), _documents(T)),
    ),
    "attention_scores": (_scores, lambda T: (*_qkv(T), _randn(H), torch.rand(H))),
    "rotary_attention": (
        lambda *args, backend: ek.rotary_attention(*args, heads=H, kv_heads=G, backend=backend),
        lambda T: (_randn(2, T, WIDTH), *_angles(T)),
    ),
    "rotary_attention_documents": (
        lambda *args, backend: ek.rotary_attention(
            *args[:3], heads=H, kv_heads=G, document_ids=args[3], overwrite=True, backend=backend
        ),
        lambda T: (_randn(2, T, WIDTH), *_angles(T), _documents(T)),
    ),
    "projected_attention": (
        lambda *args, backend: ek.projected_attention(*args, heads=H, kv_heads=G, backend=backend),
        lambda T: (_randn(2, T, 32), _randn(WIDTH, 32), *_angles(T)),
    ),
    "linear_cross_entropy": (ek.linear_cross_entropy, lambda T: (_randn(2, T, 32), _randn(V, 32), _targets(T))),
    "position_loss": (
        lambda *args, backend: ek.position_loss(*args, backend=backend).loss,
        lambda T: (_randn(2, T, 32), _randn(V, 32), _targets(T)),
    ),
    "position_loss_weights": (
        lambda *args, backend: ek.position_loss(*args[:3], weights=args[3], backend=backend).loss,
        lambda T: (_randn(2, T, 32), _randn(V, 32), _targets(T), torch.rand(T)),
    ),
    "position_loss_weights_batch": (
        lambda *args, backend: ek.position_loss(*args[:3], weights=args[3], backend=backend).loss,
        lambda T: (_randn(2, T, 32), _randn(V, 32), _targets(T), torch.rand(2, T)),
    ),
}


def _results(run, inputs):
    """The output, and the gradients of what has some."""
    inputs = [t.detach().clone().requires_grad_(t.requires_grad) for t in inputs]
    out = run(*inputs)
    upstream = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)
    return out.detach(), *torch.autograd.grad(out, [t for t in inputs if t.requires_grad], upstream)


ONLY_TORCH = ("fp8_linear", "attention_scores")
AUTOMATIC = [(name, by, None) for by in ("torch", "cpu") for name in CASES if by == "torch" or name not in ONLY_TORCH]
DYNAMIC = [(name, by, True) for name, by, _ in AUTOMATIC]


def _run(name, by, dynamic):
    minute = name == "attention_scores" and dynamic  # of symbolic heads, most of it in einsum
    return pytest.param(name, by, dynamic, marks=pytest.mark.slow if minute else ())


@pytest.mark.parametrize("name, by, dynamic", [_run(*run) for run in AUTOMATIC + DYNAMIC])
def test_lengths_share_a_graph(name, by, dynamic, request):
    """By default a second length makes the length symbolic; with dynamic=True it is from the beginning."""
    if by == "cpu" and (reason := request.getfixturevalue("cpu_library")):
        pytest.skip(reason)
    operation, inputs_at = CASES[name]
    torch._dynamo.reset()
    counter, compilations = CompileCounterWithBackend("aot_eager"), []

    def run(*inputs):
        return operation(*inputs, backend=by)

    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend=counter)
    for T in LENGTHS:
        inputs = inputs_at(T)
        for ours, eager in zip(_results(compiled, inputs), _results(run, inputs), strict=True):
            assert (ours - eager).abs().max() <= 1e-5 * eager.abs().max()
        compilations.append(counter.frame_count)
    torch._dynamo.reset()
    symbolic = 0 if dynamic else 1  # the first such length
    assert compilations[symbolic] == compilations[-1]
