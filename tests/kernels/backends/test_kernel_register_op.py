"""The custom ops in saved graphs, and the two ways to run one: eager mode and compiled graphs."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import emergence_kernels as ek
from emergence_kernels.backends.register_op import Op, register_op

OPTIONS = "bool causal, float? scale, Tensor? document_ids, SymInt? window, bool deterministic, str backend"
SCHEMAS = {
    f"attention(Tensor q, Tensor k, Tensor v, {OPTIONS}) -> (Tensor, Tensor)",
    f"attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {OPTIONS})"
    " -> (Tensor, Tensor, Tensor)",
    "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor targets, SymInt ignore_index, float z_loss, float? softcap, "
    "str backend) -> (Tensor, Tensor, Tensor)",
    "linear_cross_entropy_backward(Tensor hidden, Tensor weight, Tensor targets, Tensor top, Tensor log_total, Tensor grad, "
    "SymInt ignore_index, float z_loss, float? softcap, bool need_dx, bool need_dw, str backend) -> (Tensor, Tensor)",
    "position_loss(Tensor hidden, Tensor weight, Tensor targets, Tensor? weights, SymInt ignore_index, float z_loss, "
    "bool need_dx, bool need_dw, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "rms_norm(Tensor x, Tensor weight, float eps, Tensor? residual, str backend) -> (Tensor, Tensor, Tensor)",
    "rms_norm_backward(Tensor dy, Tensor? d_residual, Tensor x, Tensor weight, Tensor rstd, str backend)"
    " -> (Tensor, Tensor)",
    "rotary(Tensor x, Tensor cos, Tensor sin, float sign, str backend) -> Tensor",
    f"rotary_attention(Tensor qkv, Tensor cos, Tensor sin, SymInt heads, SymInt kv_heads, str rotation, {OPTIONS})"
    " -> (Tensor, Tensor, Tensor)",
    "rotary_attention_backward(Tensor grad, Tensor turned, Tensor qkv, Tensor out, Tensor lse, Tensor cos, Tensor sin, "
    f"SymInt heads, SymInt kv_heads, str rotation, {OPTIONS}) -> Tensor",
    "scale(Tensor saved, Tensor factor, ScalarType dtype, str backend) -> Tensor",
    "swiglu(Tensor gate_up, str backend) -> Tensor",
    "swiglu_backward(Tensor grad, Tensor gate_up, str backend) -> Tensor",
}


def test_schemas_take_the_calls_of_saved_graphs():
    """Arguments may follow, with defaults."""
    parse = torch._C.parse_schema
    for schema in SCHEMAS:
        op = getattr(torch.ops.emergence_kernels, schema.partition("(")[0]).default
        assert op._schema.is_backward_compatible_with(parse(f"emergence_kernels::{schema}")), schema
        called_with_less = parse(f"emergence_kernels::{schema.replace(', str backend', '')}")
        assert not op._schema.is_backward_compatible_with(called_with_less), schema


class Called(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.namespaces = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.namespaces.add(func.namespace)
        return func(*args, **(kwargs or {}))


def test_eager_mode_calls_no_custom_op(fused, device):
    """They cost tens of microseconds a call."""
    x = torch.randn(3, 8, device=device, requires_grad=True)
    with Called() as called:
        y = ek.rms_norm(x, torch.ones(8, device=device), backend=fused)
        ek.swiglu(y, backend=fused).sum().backward()
    assert x.grad is not None and "emergence_kernels" not in called.namespaces


@pytest.fixture(scope="module")
def product():
    """a * b and a + b, of which the first is differentiable, by a."""

    def save(ctx, inputs, outputs):
        ctx.save_for_backward(inputs[1])

    return register_op(
        Op(
            "for_tests(Tensor a, Tensor b, str what) -> (Tensor, Tensor)",
            lambda a, b, what: (a * b, a + b),
            lambda a, b, what: (a.new_empty(a.shape), a.new_empty(a.shape)),
        ),
        Op(
            "for_tests_backward(Tensor grad, Tensor b) -> Tensor",
            lambda grad, b: grad * b,
            lambda grad, b: grad.new_empty(grad.shape),
        ),
        save,
        lambda ctx, gradient, grad, _: (gradient(grad, *ctx.saved_tensors),),
    )


def test_both_ways_give_the_same(product):
    b, upstream = torch.randn(5), torch.randn(5)
    results = []
    for run in (product, torch.compile(product, backend="aot_eager", fullgraph=True)):
        a = torch.arange(5.0, requires_grad=True)
        first, second = run(a, b, "x")
        assert first.requires_grad
        first.backward(upstream)
        results.append((first.detach(), second.detach(), a.grad))
    assert all(torch.equal(eager, other) for eager, other in zip(*results))
    assert torch.equal(results[0][2], upstream * b)
