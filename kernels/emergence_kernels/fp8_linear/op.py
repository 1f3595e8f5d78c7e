"""A linear layer whose forward product and input gradient have fp8 operands."""

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends.accumulating import check_main_grad, weight_gradient
from ..backends.checks import autocast, check_float, require
from ..backends.dispatch import resolve_backend, unsupported_reason
from ..backends.register_op import Op, register_op
from ..backends.tracing import constant_while_tracing

MULTIPLE = 16  # of features, which tensor cores' products of 8-bit operands need
CAPABILITY = (8, 9)  # the first with such products


class Fp8Weight(NamedTuple):
    """A weight (N, K) in e4m3 in the two layouts that a training step multiplies by, 2 bytes a value together."""

    rows_NK: Tensor  # for y = x W^T
    row_scales_N: Tensor  # float32, as all scales
    columns_KN: Tensor  # transposed, for dx = dy W
    column_scales_K: Tensor


def fp8_linear(
    x: Tensor,
    weight: Tensor,
    quantized: Fp8Weight | None = None,
    *,
    main_grad: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """x W^T with operands rounded to e4m3, and a scale for each row of either (as in arXiv 2209.05433, there per tensor).

    y = fp8(x) fp8(W)^T and dx = fp8(dy) fp8(W^T)^T: the scales are those of the tokens and of the rows that a product sums
    over, so W is rounded anew for dx. dW = dy^T x is computed from what was given. Sums are float32, results in x's dtype.

    Args:
        x: (..., K).
        weight: (N, K), of x's dtype. K and N are multiples of 16.
        quantized: quantize_weight(weight) for several calls of one weight; None: rounded in each pass.
        main_grad: float32 (N, K), to which dW is added; the weight then has no gradient. Not in compiled graphs.
        backend: "triton", "torch" (the same values, multiplied in bfloat16 or float32) or "auto".

    Returns:
        (..., N).

    Raises:
        ValueError: shapes or dtypes do not fit. BackendError: the named backend cannot run.
    """
    x, weight = autocast(x, weight)
    backend = _resolve("fp8_linear", weight, backend, x=x)
    require(
        x.dim() >= 1 and x.shape[-1] == weight.shape[1],
        lambda: f"fp8_linear: x has shape {tuple(x.shape)}, expected (..., {weight.shape[1]}) to match the weight",
    )
    check_main_grad("fp8_linear", main_grad, weight)
    return _fp8_linear(x, weight, *(quantized or (None,) * 4), main_grad, backend)


@torch.no_grad()
def quantize_weight(weight: Tensor, out: Fp8Weight | None = None, *, backend: str | None = None) -> Fp8Weight:
    """Round a weight (N, K) for fp8_linear; `out`: an earlier result to overwrite, as CUDA graphs need."""
    chosen = _backend(_resolve("quantize_weight", weight, backend))
    if out is not None and chosen.__name__.endswith("triton"):
        chosen.quantize_rows(weight, out[:2])
        chosen.quantize_columns(weight, out[2:])
        return out
    result = Fp8Weight(*chosen.quantize_rows(weight), *chosen.quantize_columns(weight))
    if out is None:
        return result
    for old, new in zip(out, result):
        old.copy_(new)
    return out


def fp8_fits(in_features: int, out_features: int) -> bool:
    """Whether fp8_linear takes a weight of these sizes."""
    return all(size > 0 and size % MULTIPLE == 0 for size in (in_features, out_features))


@constant_while_tracing
def fp8_unsupported_reason(device: torch.device) -> str | None:
    """The reason why "auto" emulates the products on `device`; None where its tensor cores compute them."""
    if device.type != "cuda":
        return f"{device.type} has no fp8 products"
    return unsupported_reason("triton", "fp8_linear", device, {"triton": _too_old(device)})


@constant_while_tracing
def _too_old(device: torch.device) -> str | None:
    if device.type != "cuda" or (capability := torch.cuda.get_device_capability(device)) >= CAPABILITY:
        return None
    return "its compute capability is {}.{}, and fp8 needs {}.{}".format(*capability, *CAPABILITY)


def _resolve(name: str, weight: Tensor, backend: str | None, **others: Tensor) -> str:
    check_float(name, weight=weight, **others)
    require(
        weight.dim() == 2 and fp8_fits(*weight.shape),
        lambda: f"{name}: weight has shape {tuple(weight.shape)}; both sizes must be positive multiples of {MULTIPLE}",
    )
    reason = _too_old(weight.device)
    if weight.dtype != torch.bfloat16:
        reason = f"products with scales by row are bfloat16, not {weight.dtype}"
    return resolve_backend(backend, "fp8_linear", weight.device, {"triton": reason})


def _backend(name: str) -> ModuleType:
    if name == "triton":
        from . import triton

        return triton
    from . import reference

    return reference


def _forward(
    x: Tensor,
    weight: Tensor,
    rows_NK: Tensor | None,
    row_scales_N: Tensor | None,
    columns_KN: Tensor | None,
    column_scales_K: Tensor | None,
    main_grad: Tensor | None,
    backend: str,
) -> Tensor:
    chosen = _backend(backend)
    if rows_NK is None:
        rows_NK, row_scales_N = chosen.quantize_rows(weight)
    values = chosen.quantize_rows(x.reshape(-1, x.shape[-1]))
    y = chosen.product(*values, rows_NK, row_scales_N, x.dtype)
    # as F.linear does: autograd would not let a view be changed in place
    return torch.ops.aten._unsafe_view.default(y, (*x.shape[:-1], weight.shape[0]))


def _input_gradient(
    dy: Tensor, weight: Tensor, columns_KN: Tensor | None, column_scales_K: Tensor | None, backend: str
) -> Tensor:
    chosen = _backend(backend)
    if columns_KN is None:
        columns_KN, column_scales_K = chosen.quantize_columns(weight)
    values = chosen.quantize_rows(dy.reshape(-1, dy.shape[-1]))
    return chosen.product(*values, columns_KN, column_scales_K, dy.dtype).view(*dy.shape[:-1], weight.shape[1])


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    x, weight, _, _, columns_KN, column_scales_K, main_grad, ctx.backend = inputs
    ctx.save_for_backward(x, weight, columns_KN, column_scales_K)
    ctx.main_grad = main_grad  # not saved for backward: it is changed in place, which autograd treats as an error


def _backward(ctx, gradient, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, weight, columns_KN, column_scales_K = ctx.saved_tensors
    dx = gradient(dy, weight, columns_KN, column_scales_K, ctx.backend) if ctx.needs_input_grad[0] else None
    if not ctx.needs_input_grad[1]:
        return dx, None
    return dx, weight_gradient(ctx.main_grad, dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1]), weight)


_fp8_linear = register_op(
    Op(
        "fp8_linear(Tensor x, Tensor weight, Tensor? rows, Tensor? row_scales, Tensor? columns, Tensor? column_scales,"
        " Tensor? main_grad, str backend) -> Tensor",
        _forward,
        lambda x, weight, *_: x.new_empty((*x.shape[:-1], weight.shape[0])),
    ),
    Op(
        "fp8_linear_backward(Tensor dy, Tensor weight, Tensor? columns, Tensor? column_scales, str backend) -> Tensor",
        _input_gradient,
        lambda dy, weight, *_: dy.new_empty((*dy.shape[:-1], weight.shape[1])),
    ),
    _save,
    _backward,
)
