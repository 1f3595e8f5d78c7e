"""Rotary position embedding, for queries and keys before attention."""

from torch import Tensor

from ..backends.checks import check_float, require
from ..backends.dispatch import dtype_limits, resolve_backend
from ..backends.register_op import Op, register_op
from .reference import rotary as rotary_torch
from .reference import rotate as rotate_torch


def check_angles(op: str, x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """cos and sin (T, R) or (B, T, R) of x (B, T, H, D), constants."""
    check_float(op, cos=cos, sin=sin)
    B, T, _, D = x.shape
    R = cos.shape[-1]
    require(cos.shape == sin.shape, lambda: f"{op}: cos has shape {tuple(cos.shape)} but sin has {tuple(sin.shape)}")
    require(
        tuple(cos.shape) in ((T, R), (B, T, R)) and 0 < 2 * R <= D,
        lambda: f"{op}: cos has shape {tuple(cos.shape)}, expected ({T}, R) or ({B}, {T}, R) with 2R at most {D}",
    )
    require(cos.device == x.device, lambda: f"{op}: cos is on {cos.device} but x is on {x.device}")
    require(
        not (cos.requires_grad or sin.requires_grad),
        lambda: f"{op}: cos and sin are constants; pass them detached",
    )


def rotary(x: Tensor, cos: Tensor, sin: Tensor, *, backend: str | None = None) -> Tensor:
    """Rotates the pairs of features (i, i + R), i < R, by an angle (Su et al., arXiv 2104.09864; pairs as in Llama).

    Computed in float32 (float64 for float64) and rounded once. Features from 2R on pass unchanged (partial rotary).

    Args:
        x: (B, T, H, D).
        cos, sin: (T, R) or (B, T, R) of any floating-point dtype, 2R <= D; constants, no gradient flows to them.
        backend: "triton", "cuda", "cpu", "torch" or "auto"; None reads EMERGENCE_KERNELS_BACKEND.

    Returns:
        (B, T, H, D).

    Raises:
        ValueError: shapes, dtypes or devices do not match. BackendError: the named backend cannot run.
    """
    check_float("rotary", x=x)
    require(x.dim() == 4, lambda: f"rotary: x must be (batch, seq, heads, head_dim), got shape {tuple(x.shape)}")
    check_angles("rotary", x, cos, sin)
    backend = resolve_backend(backend, "rotary", x.device, dtype_limits(x))
    if backend == "torch":
        return rotary_torch(x, cos, sin)
    return _rotary(x, cos, sin, 1.0, backend)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: float, backend: str, out: Tensor | None = None) -> Tensor:
    """Without autograd, by the angles for sign 1, back for sign -1. out: where to write; it may be x itself."""
    if backend == "triton":
        from .triton import rotate

        return rotate(x, cos, sin, sign, out)
    if backend == "torch":
        return rotate_torch(x, cos, sin, sign, out)
    from .compiled import rotate

    return rotate(x, cos, sin, sign, out, backend=backend)


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    _, cos, sin, ctx.sign, ctx.backend = inputs
    ctx.save_for_backward(cos, sin)


def _backward(ctx, turn, grad: Tensor) -> tuple[Tensor]:
    return (turn(grad, *ctx.saved_tensors, -ctx.sign, ctx.backend),)


_rotary = register_op(
    Op(
        "rotary(Tensor x, Tensor cos, Tensor sin, float sign, str backend) -> Tensor",
        rotate,
        lambda x, cos, sin, sign, backend: x.new_empty(x.shape),
    ),
    None,
    _save,
    _backward,
)
