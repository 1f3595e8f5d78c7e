"""Rotary embedding and attention of a fused qkv projection, whose gradient is written into one tensor.

rotary() and attention() one after the other cost two concatenations in backward: of dq and dk for the rotation, and of
those and dv for the projection. Here dq, dk and dv go into slices of one tensor, where dq and dk are rotated back. With X
the bytes of q, and as many key heads as query heads, beside attention itself:

    composed: 4 X forward, 14 X backward        here: 4 X and 4 X, or 6 X where attention returns tensors of its own

Hopper's kernels and those for CPUs rotate dq and dk back before they write them: 4 X and 0.

Shapes: B sequences, T tokens, H query heads, G key/value heads, D features of a head.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..backends.checks import autocast, check_float, require
from ..backends.dispatch import dtype_limits, resolve_backend
from ..backends.register_op import Op, first_order, register_graph_op
from ..backends.tracing import profiled, traced
from ..rotary.op import check_angles, rotary, rotate
from .document_ranges import DocumentPlan
from .op import OWN, as_plan, by_others, checked, kernels_of, sinks_gradient
from .options import SCHEMA, SINKS, Angles, Options, Saved


@profiled
def rotary_attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: int,
    kv_heads: int | None = None,
    causal: bool = True,
    scale: float | None = None,
    document_ids: Tensor | DocumentPlan | None = None,
    window: int | None = None,
    deterministic: bool = False,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi: Tensor | None = None,
    overwrite: bool = False,
    backend: str | None = None,
) -> Tensor:
    """attention(rotary(q), rotary(k), v) of a fused qkv projection.

    Args:
        qkv: (B, T, (H + 2 G) D): the query heads, the key heads and the value heads, each of D features.
        cos, sin: as for rotary.
        heads, kv_heads: H and G; None means G = H.
        causal, scale, document_ids, window, deterministic, softcap, sinks, alibi: as for attention.
        overwrite: q and k may be rotated in place in qkv, which saves a tensor of their size until backward. For the output of
            a projection that nothing else reads. Autograd is informed (another use of qkv's old value raises), and for a leaf,
            a view or an expanded tensor, where it would be wrong, a copy is rotated instead.
        backend: as for attention; None reads EMERGENCE_KERNELS_BACKEND.

    Returns:
        (B, T, H, D).

    Raises:
        ValueError: shapes, dtypes or devices do not match. BackendError: the named backend cannot run.
    """
    op = "rotary_attention"
    (qkv,) = autocast(qkv)
    kv_heads = heads if kv_heads is None else kv_heads
    check_float(op, qkv=qkv)
    require(
        heads > 0 and kv_heads > 0,
        lambda: f"{op}: {heads} query heads and {kv_heads} key heads; both must be positive",
    )
    count = heads + 2 * kv_heads
    require(
        qkv.dim() == 3 and qkv.shape[-1] > 0 and qkv.shape[-1] % count == 0,
        lambda: f"{op}: qkv must be (batch, seq, {count} * head_dim), got shape {tuple(qkv.shape)}",
    )
    q, k, v = _parts(qkv, heads, kv_heads)
    check_angles(op, q, cos, sin)
    plan = as_plan(document_ids)
    ids = None if plan is None else plan.ids
    options = Options(causal, scale, ids, window, deterministic, softcap, sinks, alibi)
    options, chosen = checked(op, q, k, v, options, plan, backend)
    return attention_of_qkv(qkv, cos, sin, heads, kv_heads, options, plan, chosen, backend, overwrite)


def attention_of_qkv(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    kv_heads: int,
    options: Options,
    plan: DocumentPlan | None,
    chosen: str,
    backend: str | None,
    overwrite: bool,
) -> Tensor:
    """rotary_attention of arguments that are checked; `chosen`: the backend of attention, `backend`: the one asked for."""
    rotation = resolve_backend("auto" if backend == "flash" else backend, "rotary", qkv.device, dtype_limits(qkv))
    if traced():
        if chosen in OWN:
            return _in_graph(qkv, cos, sin, heads, kv_heads, rotation, *options.arguments(chosen))[0]
        turned, v = _heads(qkv, heads, kv_heads).split([heads + kv_heads, kv_heads], 2)
        q, k = rotary(turned, cos, sin, backend=rotation).split([heads, kv_heads], 2)
        return by_others(q, k, v, options, plan, chosen)
    in_place = overwrite and rotation != "torch" and _may_be_overwritten(qkv)
    if chosen in OWN:
        return _Fused.apply(qkv, cos, sin, heads, kv_heads, rotation, in_place, *options.arguments(chosen))[0]
    q, k, v, *_ = _Rotated.apply(qkv, cos, sin, heads, kv_heads, rotation, in_place)
    return by_others(q, k, v, options, plan, chosen)


def _may_be_overwritten(qkv: Tensor) -> bool:
    """Whether qkv may be changed in place: autograd forbids it for a leaf, and copies whole gradients for a view."""
    tracked = qkv.requires_grad and torch.is_grad_enabled()
    return qkv.is_contiguous() and not (qkv._is_view() or qkv.is_inference() or (tracked and qkv.is_leaf))


def _heads(qkv: Tensor, heads: int, kv_heads: int) -> Tensor:
    count = heads + 2 * kv_heads
    return qkv.view(*qkv.shape[:2], count, qkv.shape[2] // count)


def _parts(qkv: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    return _heads(qkv, heads, kv_heads).split([heads, kv_heads, kv_heads], 2)


def _rotated(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, rotation: str, in_place: bool
) -> tuple[Tensor, Tensor]:
    """q and k rotated (B, T, H + G, D), in qkv itself or in a tensor of their own, and v."""
    turned, v = _heads(qkv.detach(), heads, kv_heads).split([heads + kv_heads, kv_heads], 2)
    return rotate(turned, cos, sin, 1.0, rotation, turned if in_place else None), v


def _joined(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor, rotation: str) -> Tensor:
    """The gradient of qkv from those of the rotated q, the rotated k, and v."""
    heads, kv_heads = dq.shape[2], dk.shape[2]
    d_qkv = torch.empty(*dq.shape[:2], heads + 2 * kv_heads, dq.shape[3], dtype=dq.dtype, device=dq.device)
    if rotation == "triton":
        from ..rotary.triton import join

        join(dq, dk, dv, cos, sin, d_qkv)
    else:
        to_q, to_k, to_v = d_qkv.split([heads, kv_heads, kv_heads], 2)
        rotate(dq, cos, sin, -1.0, rotation, to_q)
        rotate(dk, cos, sin, -1.0, rotation, to_k)
        to_v.copy_(dv)
    return d_qkv.flatten(2)


class _Rotated(torch.autograd.Function):
    """qkv -> q, k, v for attention by others; in place, qkv is also an output (mark_dirty)."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, rotation: str, in_place: bool
    ) -> tuple[Tensor, ...]:
        turned, v = _rotated(qkv, cos, sin, heads, kv_heads, rotation, in_place)
        ctx.save_for_backward(cos, sin)
        ctx.rest = heads, kv_heads, rotation
        ctx.set_materialize_grads(False)
        q, k = turned.split([heads, kv_heads], 2)
        if not in_place:
            return q, k, v
        ctx.mark_dirty(qkv)
        return q, k, v, qkv

    @staticmethod
    @first_order
    def backward(
        ctx: Any, dq: Tensor | None, dk: Tensor | None, dv: Tensor | None, direct: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        heads, kv_heads, rotation = ctx.rest
        cos, sin = ctx.saved_tensors
        dq, dk, dv = _completed(dq, dk, dv, direct, heads, kv_heads)
        return _joined(dq, dk, dv, cos, sin, rotation), *(None,) * 6


def _completed(
    dq: Tensor | None, dk: Tensor | None, dv: Tensor | None, direct: Tensor | None, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros where there is no gradient, plus the gradient of a qkv that was read after it was overwritten."""
    given = (dq, dk, dv)
    if direct is not None:
        parts = _parts(direct, heads, kv_heads)
        dq, dk, dv = (part if grad is None else grad + part for grad, part in zip(given, parts))
    else:
        like = next(grad for grad in given if grad is not None)
        B, T, _, D = like.shape
        counts = (heads, kv_heads, kv_heads)
        dq, dk, dv = (like.new_zeros(B, T, n, D) if grad is None else grad for grad, n in zip(given, counts))
    return dq, dk, dv


class _Fused(torch.autograd.Function):
    """Attention by kernels that write their gradients into given tensors."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        heads: int,
        kv_heads: int,
        rotation: str,
        in_place: bool,
        *rest: Any,
    ) -> tuple[Tensor, ...]:
        options, backend = Options.parse(rest)
        turned, v = _rotated(qkv, cos, sin, heads, kv_heads, rotation, in_place)
        q, k = turned.split([heads, kv_heads], 2)
        out, lse = kernels_of(backend).forward(q, k, v, options)
        if in_place:
            ctx.mark_dirty(qkv)
        ctx.save_for_backward(q, k, v, out, lse, cos, sin, *options.tensors())
        ctx.rest = rotation, options.without_tensors(), backend
        ctx.set_materialize_grads(False)
        return (out, qkv) if in_place else (out,)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor | None, direct: Tensor | None = None) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, cos, sin, *tensors = ctx.saved_tensors
        rotation, options, backend = ctx.rest
        options = options.with_tensors(tensors)
        saved = Saved(q, k, v, out, lse)
        d_qkv = gradient_of_qkv(grad, saved, (cos, sin), rotation, options, backend, direct)
        d_sinks = None
        if grad is not None and ctx.needs_input_grad[7 + SINKS]:
            d_sinks = kernels_of(backend).sinks_gradient(grad, out, lse, options.sinks)
        return d_qkv, *(None,) * (6 + SINKS), d_sinks, *(None,) * (len(options) - SINKS)


def gradient_of_qkv(
    grad: Tensor | None,
    saved: Saved,
    angles: Angles,
    rotation: str,
    options: Options,
    backend: str,
    direct: Tensor | None = None,
) -> Tensor:
    """The gradient of qkv. direct: that of the overwritten qkv, added to it."""
    q, (cos, sin) = saved.q, angles
    heads, kv_heads = q.shape[2], saved.k.shape[2]
    d_qkv = torch.empty(*q.shape[:2], heads + 2 * kv_heads, q.shape[3], dtype=q.dtype, device=q.device)
    into = tuple(d_qkv.split([heads, kv_heads, kv_heads], 2))
    if grad is None:
        d_qkv.zero_()
    elif direct is None and backend != "triton" and kernels_of(backend).rotates_back(q, cos):
        kernels_of(backend).backward(grad, saved, options, into, angles)
        return d_qkv.flatten(2)
    else:
        kernels_of(backend).backward(grad, saved, options, into)
    if direct is not None:
        d_qkv += _heads(direct, heads, kv_heads)
    turned = d_qkv[:, :, : heads + kv_heads]
    rotate(turned, cos, sin, -1.0, rotation, turned)
    return d_qkv.flatten(2)


def _forward(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, rotation: str, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """-> out, lse, and q and k rotated."""
    options, backend = Options.parse(rest)
    turned, v = _rotated(qkv, cos, sin, heads, kv_heads, rotation, in_place=False)
    out, lse = kernels_of(backend).forward(*turned.split([heads, kv_heads], 2), v, options)
    return out, lse, turned


def _fake(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    B, T, width = qkv.shape
    D = width // (heads + 2 * kv_heads)
    lse = qkv.new_empty((B, heads, T), dtype=torch.float32)
    return qkv.new_empty((B, T, heads, D)), lse, qkv.new_empty((B, T, heads + kv_heads, D))


def _gradient_in_graph(
    grad: Tensor,
    turned: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    kv_heads: int,
    rotation: str,
    *rest: Any,
) -> Tensor:
    options, backend = Options.parse(rest)
    q, k = turned.split([heads, kv_heads], 2)
    v = _parts(qkv, heads, kv_heads)[2]
    return gradient_of_qkv(grad, Saved(q, k, v, out, lse), (cos, sin), rotation, options, backend)


def _save(ctx: Any, inputs: tuple, outputs: tuple) -> None:
    qkv, cos, sin, *ctx.heads = inputs[:6]  # heads, kv_heads, rotation
    options, ctx.backend = Options.parse(inputs[6:])
    out, lse, turned = outputs
    ctx.save_for_backward(turned, qkv, out, lse, cos, sin, *options.tensors())
    ctx.options = options.without_tensors()


def _backward(ctx: Any, gradient: Callable[..., Tensor], grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    turned, qkv, out, lse, cos, sin, *tensors = ctx.saved_tensors
    options = ctx.options.with_tensors(tensors)
    d_qkv = gradient(grad, turned, qkv, out, lse, cos, sin, *ctx.heads, *options.arguments(ctx.backend))
    if options.sinks is None or not ctx.needs_input_grad[6 + SINKS]:
        return (d_qkv,)
    return d_qkv, *(None,) * (5 + SINKS), sinks_gradient(grad, out, lse, options.sinks, ctx.backend)


_in_graph = register_graph_op(
    Op(
        f"rotary_attention(Tensor qkv, Tensor cos, Tensor sin, SymInt heads, SymInt kv_heads, str rotation, {SCHEMA})"
        " -> (Tensor, Tensor, Tensor)",
        _forward,
        _fake,
    ),
    Op(
        "rotary_attention_backward(Tensor grad, Tensor turned, Tensor qkv, Tensor out, Tensor lse, Tensor cos, Tensor sin,"
        f" SymInt heads, SymInt kv_heads, str rotation, {SCHEMA}) -> Tensor",
        _gradient_in_graph,
        lambda grad, turned, qkv, *_: qkv.new_empty(qkv.shape),
    ),
    _save,
    _backward,
)
