"""Register an operation with PyTorch once: a torch.library custom op for compiled graphs, an autograd.Function for eager mode.

Calling a custom op costs tens of microseconds more than calling an autograd.Function, so eager mode does not use it. Both run
the same code forward and backward.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef

from .tracing import traced

NAMESPACE = "emergence_kernels"


@dataclass(frozen=True)
class Op:
    """A custom op without autograd.

    schema: name, arguments and results as torch.library writes them, such as "swiglu(Tensor x, str backend) -> Tensor".
    run: the implementation. fake: the same arguments -> empty tensors of the results' shapes and dtypes.
    """

    schema: str
    run: Callable
    fake: Callable

    def define(self) -> CustomOpDef:
        name, bracket, rest = self.schema.partition("(")
        op = torch.library.custom_op(f"{NAMESPACE}::{name}", self.run, mutates_args=(), schema=bracket + rest)
        op.register_fake(self.fake)
        return op


def register_graph_op(forward: Op, gradient: Op | None, save: Callable, backward: Callable) -> Callable:
    """Register the custom op `forward` with autograd, for compiled graphs.

    Args:
        gradient: the op that the backward pass calls; None: `forward` itself.
        save: (ctx, inputs, outputs): saves what backward needs.
        backward: (ctx, gradient, *grads) -> gradients of the first inputs; those of the others are None. `gradient` is called
            with the arguments of the op `gradient`.
    """
    op = forward.define()
    called = op if gradient is None else gradient.define()
    op.register_autograd(
        lambda ctx, *grads: _for_every_input(ctx, backward(ctx, called, *grads)),
        setup_context=lambda ctx, inputs, output: save(ctx, inputs, output),
    )
    return op


def register_op(
    forward: Op,
    gradient: Op | None,
    save: Callable,
    backward: Callable,
    *,
    differentiable: int = 1,
    returned: int | None = None,
    eager_forward: Callable | None = None,
    eager_gradient: Callable | None = None,
) -> Callable:
    """Register an operation; return a function of the arguments of `forward`, differentiable in eager mode and in graphs.

    Args:
        forward, gradient, save, backward: as for register_graph_op. In eager mode unused outputs have None as gradient.
        differentiable: number of differentiable outputs, the first ones.
        returned: number of outputs that eager mode returns, the others are for `save` only; None: all.
        eager_forward, eager_gradient: replace forward.run and gradient.run in eager mode.
    """
    op = register_graph_op(forward, gradient, save, backward)
    compute = eager_forward or forward.run
    called = eager_gradient or (forward if gradient is None else gradient).run

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Tensor | tuple[Tensor, ...]:
            outputs = compute(*inputs)
            save(ctx, inputs, outputs)
            ctx.set_materialize_grads(False)  # zeros for unused outputs would be a launch each
            if isinstance(outputs, Tensor):
                return outputs
            outputs = outputs[:returned]
            ctx.mark_non_differentiable(*outputs[differentiable:])
            return outputs

        @staticmethod
        @first_order
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            return _for_every_input(ctx, backward(ctx, called, *grads))

    named(Eager, forward.schema.partition("(")[0])

    def run(*inputs: Any) -> Any:
        return (op if traced() else Eager.apply)(*inputs)

    return run


def first_order(backward: Callable) -> Callable:
    """Mark an autograd.Function's backward as not differentiable: with create_graph=True it raises.

    torch's once_differentiable raises in the second backward pass alone, and only where that pass reaches the upstream
    gradients: a Hessian-vector product by autograd.grad or torch.autograd.functional would lack a part, or be 0, without error.
    """

    @functools.wraps(backward)
    def run(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "emergence_kernels has first derivatives only, and create_graph=True asks for second ones; use PyTorch's own "
                "operations for these"
            )
        return backward(ctx, *grads)

    return run


def last_backward() -> bool:
    """Whether the backward pass that runs is the last of its graph, which is not retained (torch's compiler asks the same)."""
    return not torch._C._autograd._get_current_graph_task_keep_graph()


def named(function: type[torch.autograd.Function], name: str) -> None:
    """Give an autograd.Function and its backward the op's name, under which profilers and messages show them."""
    function.__name__ = function.__qualname__ = f"{NAMESPACE}::{name}"
    function._backward_cls.__name__ = f"{NAMESPACE}::{name}Backward"


def _for_every_input(ctx: Any, gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return *gradients, *(None,) * (len(ctx.needs_input_grad) - len(gradients))
