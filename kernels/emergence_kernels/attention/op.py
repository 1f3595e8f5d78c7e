"""Scaled dot-product attention for training: causal or full, grouped queries, documents, sliding window."""

from contextlib import nullcontext
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..backends.checks import autocast, check_float, require
from ..backends.dispatch import dtype_limits, resolve_backend, slow_products
from ..backends.ranking import fastest
from ..backends.register_op import Op, register_op
from . import compiled as compiled_attention
from . import flash as flash_backend
from .options import SCHEMA, Options
from .reference import attention as attention_torch

OWN = ("triton", "cuda")  # backends whose kernels are called from here; the others have their own autograd
MAX_HEAD_DIM = 128  # bound of the Triton kernels, which pad head dims to 16, 32, 64 or 128


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    document_ids: Tensor | None = None,
    window: int | None = None,
    deterministic: bool = False,
    backend: str | None = None,
) -> Tensor:
    """softmax(scale * q k^T + mask) v, with the softmax in float32.

    Args:
        q: (B, T, H, D).
        k, v: (B, T, G, D) where G divides H: query head h reads key/value head h // (H // G) (GQA; MQA is G = 1).
        causal: query i sees keys j <= i.
        scale: of the scores; None means 1 / sqrt(D).
        document_ids: (B, T) integers; a query sees only keys of the same id. None: one document.
        window: query i sees keys with |i - j| < window (with causal: itself and the window - 1 before it).
        deterministic: two backward passes give the same bits. torch.use_deterministic_algorithms(True) has the same effect;
            "triton" always is, and so is "cuda" except for Hopper's kernels.
        backend: "triton", "cuda", "flash", "torch" or "auto"; None reads EMERGENCE_KERNELS_BACKEND.

    Returns:
        (B, T, H, D). Every query sees itself, so no row is empty.

    Raises:
        ValueError: shapes, dtypes or devices do not match. BackendError: the named backend cannot run.
    """
    q, k, v = autocast(q, k, v)
    options, backend = checked(
        "attention", q, k, v, Options(causal, scale, document_ids, window, deterministic), backend
    )
    if backend not in OWN:
        return by_others(q, k, v, options, backend)
    return _attention(q, k, v, *options, backend)[0]


def checked(op: str, q: Tensor, k: Tensor, v: Tensor, options: Options, backend: str | None) -> tuple[Options, str]:
    """Check the arguments; return the options, with torch's setting for determinism, and the backend."""
    check_float(op, q=q, k=k, v=v)
    require(q.dim() == 4, f"{op}: q must be (batch, seq, heads, head_dim), got shape {tuple(q.shape)}")
    require(k.shape == v.shape, f"{op}: k has shape {tuple(k.shape)} but v has {tuple(v.shape)}")
    B, T, H, D = q.shape
    require(
        k.dim() == 4 and k.shape[0] == B and k.shape[1] == T and k.shape[3] == D,
        f"{op}: k has shape {tuple(k.shape)}, expected ({B}, {T}, key heads, {D}) to match q",
    )
    G = k.shape[2]
    require(G > 0 and H % G == 0, f"{op}: {H} query heads cannot share {G} key heads: {G} must divide {H}")
    _, _, document_ids, window, deterministic = options
    require(window is None or window >= 1, f"{op}: window must be at least 1, got {window}")
    if document_ids is not None:
        require(
            tuple(document_ids.shape) == (B, T),
            f"{op}: document_ids have shape {tuple(document_ids.shape)}, expected ({B}, {T})",
        )
        require(
            document_ids.dtype in (torch.int32, torch.int64),
            f"{op}: document_ids have dtype {document_ids.dtype}; expected int32 or int64",
        )
        require(document_ids.device == q.device, f"{op}: document_ids are on {document_ids.device}, q on {q.device}")
    deterministic = deterministic or torch.are_deterministic_algorithms_enabled()
    limits = dtype_limits(q) | {
        "flash": flash_backend.unsupported_reason(q, document_ids, window, deterministic),
        "cuda": compiled_attention.unsupported_reason(q),
    }
    if D > MAX_HEAD_DIM:
        limits["triton"] = f"head dim {D} is more than {MAX_HEAD_DIM}"
    kind = "documents" if document_ids is not None else "window" if window else "causal" if options.causal else "full"
    backend = resolve_backend(backend, "attention", q.device, limits, slow_products(q), _order(q, kind))
    return options._replace(deterministic=deterministic), backend


def _order(q: Tensor, kind: str) -> list[str] | tuple[str, ...]:
    """Backends, fastest first by measurement: with this mask, else with the causal one."""
    for known in (kind, "causal"):
        if order := fastest(f"attention, {known}", q.device, q.dtype, (q.shape[3], q.shape[1])):
            return order
    return compiled_attention.order(q)


def by_others(q: Tensor, k: Tensor, v: Tensor, options: Options, backend: str) -> Tensor:
    """Attention by "torch" and "flash", which have their own autograd."""
    causal, scale, document_ids, window, deterministic = options
    if backend == "flash":
        return flash_backend.attention(q, k, v, causal=causal, scale=scale, window=window, deterministic=deterministic)
    exact = deterministic and q.device.type == "cuda"  # PyTorch's fused backward passes add with atomics
    with sdpa_kernel(SDPBackend.MATH) if exact else nullcontext():
        return attention_torch(q, k, v, causal=causal, scale=scale, document_ids=document_ids, window=window)


def kernels_of(backend: str) -> ModuleType:
    if backend == "triton":
        from . import triton as attention  # imports Triton

        return attention
    return compiled_attention


def _forward(q: Tensor, k: Tensor, v: Tensor, *rest) -> tuple[Tensor, Tensor]:
    *options, backend = rest
    return kernels_of(backend).forward(q, k, v, Options(*options))


def _gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest
) -> tuple[Tensor, Tensor, Tensor]:
    *options, backend = rest
    return kernels_of(backend).backward(grad, q, k, v, out, lse, Options(*options))


def _save(ctx, inputs: tuple, outputs: tuple[Tensor, Tensor]) -> None:
    q, k, v, *given, ctx.backend = inputs
    options = Options(*given)
    ctx.save_for_backward(q, k, v, *outputs, options.document_ids)
    ctx.options = options._replace(document_ids=None)


def _backward(ctx, gradients, grad: Tensor | None, _) -> tuple[Tensor | None, ...]:
    if grad is None:
        return ()
    *saved, document_ids = ctx.saved_tensors
    return gradients(grad, *saved, *ctx.options._replace(document_ids=document_ids), ctx.backend)


def _fake(q, *_):
    B, T, H, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((B, H, T), dtype=torch.float32)


_attention = register_op(
    Op(f"attention(Tensor q, Tensor k, Tensor v, {SCHEMA}, str backend) -> (Tensor, Tensor)", _forward, _fake),
    Op(
        f"attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {SCHEMA}, str backend)"
        " -> (Tensor, Tensor, Tensor)",
        _gradients,
        lambda grad, q, k, v, *_: (q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)),
    ),
    _save,
    _backward,
)
