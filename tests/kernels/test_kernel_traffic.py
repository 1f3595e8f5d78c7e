"""Launches and bytes of a decoder layer's element-wise work: what is neither a matrix product nor attention itself.

Triton's kernels are counted where they are launched, and not run; each reads or writes each of its tensors once. PyTorch's own
operations are counted as they are dispatched. X is tokens * width * 2 bytes, r is ffn / width.
"""

from collections import defaultdict
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import emergence_kernels as ek
from emergence_kernels.backends import triton_configs
from emergence_train.models.decoder import Block, RotaryTable, Shared
from emergence_train.models.decoder_config import DecoderConfig

B, T, WIDTH, HEADS, FFN = 2, 128, 256, 4, 768
X, R = B * T * WIDTH * 2, FFN / WIDTH
KERNELS = {  # of each module, and the part of a layer that it is
    "rms_norm": ("norm + residual", ["_forward_kernel", "_backward_kernel", "_sum_shares_kernel"]),
    "rotary": ("rotary", ["_rotary_kernel", "_join_kernel"]),
    "swiglu": ("swiglu", ["_swiglu_kernel", "_swiglu_backward_kernel"]),
    "attention": (None, ["_forward_kernel", "_delta_kernel", "_dkdv_kernel", "_dq_kernel"]),
}
PRODUCTS = ("mm", "bmm", "addmm", "_scaled_dot_product")  # not element-wise


class Traffic(TorchDispatchMode):
    """part -> [launches, bytes]; "PyTorch" for what is dispatched."""

    def __init__(self):
        super().__init__()
        self.parts, self.names = defaultdict(lambda: [0, 0]), []

    def add(self, part: str, name: str, tensors) -> None:
        self.parts[part][0] += 1
        self.parts[part][1] += sum(t.numel() * t.element_size() for t in tensors)
        self.names.append(name)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        read, written = _tensors((*args, *(kwargs or {}).values())), _tensors(out)
        place = read[0].untyped_storage().data_ptr() if read else None
        views = bool(written) and all(t.untyped_storage().data_ptr() == place for t in written)
        if not (views and not name.endswith("_")) and not name.startswith(("empty", "new_empty", *PRODUCTS)):
            self.add("PyTorch", name, read + written)
        return out


def _tensors(values) -> list[torch.Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, torch.Tensor)]


class Recorder:
    """In the place of a kernel: counts a launch, and computes nothing."""

    def __init__(self, traffic: Traffic, part: str | None, name: str):
        self.traffic, self.part, self.name = traffic, part, name

    def __getitem__(self, grid):
        def launch(*arguments, **_):
            if self.part is not None:
                tensors = [t for t in arguments if isinstance(t, torch.Tensor) and t.numel()]
                self.traffic.add(self.part, self.name, tensors)

        return launch


@contextmanager
def counted(monkeypatch):
    import importlib

    traffic = Traffic()
    with monkeypatch.context() as patch:
        patch.setenv("EMERGENCE_KERNELS_BACKEND", "triton")
        # What programs sum of a gain's gradient does not grow with the tokens: on a GPU it is as much as these few.
        patch.setattr(triton_configs, "persistent_programs", lambda device, num_warps: 2)
        for module, (part, kernels) in KERNELS.items():
            triton_module = importlib.import_module(f"emergence_kernels.{module}.triton")
            for name in kernels:
                patch.setattr(triton_module, name, Recorder(traffic, part, name))
        with traffic:
            yield traffic


class Composed(Block):
    """The layer as it was: rotary and attention in turn, silu and product by PyTorch."""

    def forward(self, x, residual, shared):
        x, residual = self.attention_norm(x, residual)
        q, k, v = self.attention.project(x, shared)
        x, residual = self.swiglu_norm(self.attention.out(ek.attention(q, k, v).reshape(x.shape)), residual)
        gate, up = self.swiglu.gate_up(x).chunk(2, -1)
        return self.swiglu.down(F.silu(gate) * up), residual


def layer(kind, device, monkeypatch, by_others: bool = False):
    """(forward, backward), each part -> (launches, multiples of X)."""
    config = DecoderConfig(vocab_size=64, width=WIDTH, layers=1, heads=HEADS, kv_heads=HEADS, ffn=FFN, max_sequence=T)
    block = kind(config).to(device, torch.bfloat16)
    shared = Shared(*RotaryTable(config)(T, device), slopes=None)
    x, residual = (torch.randn(B, T, WIDTH, device=device).bfloat16().requires_grad_() for _ in range(2))
    upstream = torch.randn(B, T, WIDTH, device=device).bfloat16()
    if by_others:  # what attention of other libraries does: gradients in tensors of its own
        from emergence_kernels.attention import rotary_attention as module

        monkeypatch.setattr(module, "checked", lambda op, q, k, v, options, plan, backend: (options, "torch"))
    with counted(monkeypatch) as forward:
        out = block(x, residual, shared)
    with counted(monkeypatch) as backward:
        torch.autograd.grad(out, (x, residual, *block.parameters()), (upstream, upstream))
    return [
        {part: (launches, round(bytes_ / X, 1)) for part, (launches, bytes_) in traffic.parts.items()}
        for traffic in (forward, backward)
    ]


SLACK = 0.3  # in X: weights, angles, statistics of rows, and what is summed over programs


def at_most(parts, part, launches, xs):
    got = parts.get(part, (0, 0.0))
    assert got[0] <= launches and got[1] <= xs + SLACK, f"{part}: {got}, at most ({launches}, {xs} X)"


def test_traffic_of_a_layer(triton_only, device, monkeypatch):
    """All of it is in four launches of ours forward and four backward, whose bytes are the least there are, and in two small
    ones that sum a gain's gradient over programs and round it."""
    forward, backward = layer(Block, device, monkeypatch)
    for parts, launches, swiglu in ((forward, 2, 3 * R), (backward, 4, 5 * R)):
        at_most(parts, "norm + residual", launches, 8)
        at_most(parts, "rotary", 1, 4)
        at_most(parts, "swiglu", 1, swiglu)
        at_most(parts, "PyTorch", 0, 0)


def test_traffic_where_attention_is_by_others(triton_only, device, monkeypatch):
    forward, backward = layer(Block, device, monkeypatch, by_others=True)
    at_most(forward, "rotary", 1, 4)
    at_most(backward, "rotary", 1, 6)
    at_most(forward, "PyTorch", 0, 0)
    at_most(backward, "PyTorch", 0, 0)


def test_traffic_of_the_composed_layer(triton_only, device, monkeypatch):
    """The counter counts: what the operators replace moves the bytes that its formulas say."""
    forward, backward = layer(Composed, device, monkeypatch)
    assert forward["rotary"] == (1, pytest.approx(4, abs=SLACK)) and backward["rotary"] == (
        1,
        pytest.approx(4, abs=SLACK),
    )
    assert forward["PyTorch"] == (2, pytest.approx(5 * R, abs=SLACK))
    # silu's 3r, the product's 6r and the halves' 4r; the two concatenations' 4 and 6.
    assert backward["PyTorch"] == (4 + 2, pytest.approx(13 * R + 10, abs=SLACK))


def beside(traffic: Traffic, *products: torch.Tensor) -> float:
    """Bytes of the operations counted but for tensors that a product by itself would read and write."""
    return traffic.parts["PyTorch"][1] - sum(t.numel() * t.element_size() for t in products)


@pytest.mark.usefixtures("hopper")
def test_traffic_of_products_on_hopper(device, monkeypatch):
    """SwiGLU and rotary are in products and in attention's backward pass: nothing else runs, and what is written once more than
    products write is the activation; backward reads gate and up, and writes their gradients."""
    from emergence_kernels.attention import compiled, hopper
    from emergence_kernels.attention.options import Options
    from emergence_kernels.attention.projected_attention import _Projected
    from emergence_kernels.feed_forward.op import _FeedForward

    x, w, down = (torch.randn(*s, device=device).bfloat16().requires_grad_() for s in ((128, 64), (256, 64), (64, 128)))
    with Traffic() as forward:
        y = _FeedForward.apply(x, w, down, None, "cuda", True)
    upstream, activation = torch.randn_like(y), 128 * 128 * 2  # bytes of the activation
    with Traffic() as backward:
        torch.autograd.grad(y, (x, w, down), upstream)
    assert forward.names == ["linear_swiglu"] and backward.names == ["linear_swiglu_backward"]
    assert beside(forward, x, w, x.new_empty(128, 256)) == activation
    assert beside(backward, upstream, down) == 4 * activation

    monkeypatch.setattr(compiled, "_kernels", lambda q: hopper)
    x, w = (torch.randn(*s, device=device).bfloat16().requires_grad_() for s in ((1, 128, 64), (6 * 64, 64)))
    angles = torch.rand(128, 32, device=device), torch.rand(128, 32, device=device)
    options = Options(deterministic=True).arguments("cuda")
    with Traffic() as forward:
        y = _Projected.apply(x, w, *angles, None, 2, 2, *options)
    upstream = torch.randn_like(y)
    with Traffic() as backward:
        torch.autograd.grad(y, (x, w), upstream)
    assert forward.names == ["linear_rotary", "zeros", "attention_hopper"]  # a count of blocks
    assert backward.names == ["attention_hopper_backward"]
