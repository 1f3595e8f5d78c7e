"""Scaled dot-product attention for training: causal or full, grouped queries, documents, windows, softcap, sinks, ALiBi."""

import math
from contextlib import nullcontext
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..backends.checks import autocast, check_float, checks_values, require
from ..backends.dispatch import dtype_limits, resolve_backend, slow_products
from ..backends.ranking import fastest
from ..backends.register_op import Op, register_op
from ..backends.tracing import profiled, traced
from . import compiled as compiled_attention
from . import cpu as cpu_attention
from . import flash as flash_backend
from .document_ranges import DocumentPlan, planned, starts_of_documents
from .options import BIASES, SCHEMA, SINKS, Options, Saved
from .reference import attention as attention_torch

OWN = ("triton", "cuda", "cpu")  # backends whose kernels are called from here; the others have their own autograd
MAX_HEAD_DIM = 128  # bound of the Triton kernels, which pad head dims to 16, 32, 64 or 128


@profiled
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    document_ids: Tensor | DocumentPlan | None = None,
    window: int | None = None,
    deterministic: bool = False,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """softmax(cap(scale * q k^T) + bias + mask) v, with the softmax in float32.

    Args:
        q: (B, T, H, D).
        k, v: (B, T, G, D) where G divides H: query head h reads key/value head h // (H // G) (GQA; MQA is G = 1).
        causal: query i sees keys j <= i.
        scale: of the scores; None means 1 / sqrt(D).
        document_ids: (B, T) integers; a query sees only keys of the same id. None: one document. A plan of them
            (document_plan) spares each call what it computes of the ids.
        window: query i sees keys with |i - j| < window (with causal: itself and the window - 1 before it).
        deterministic: two backward passes give the same bits. torch.use_deterministic_algorithms(True) has the same effect;
            "triton" always is.
        softcap: c > 0: scores are c tanh(scale * q k^T / c), between -c and c (Gemma 2, arXiv 2408.00118).
        sinks: (H,): a logit that each softmax of head h counts in its denominator, as of a key whose value is 0 (gpt-oss;
            Xiao et al., arXiv 2309.17453). Differentiable.
        alibi: (H,) slopes: -slope |i - j| is added to the scores of head h (arXiv 2108.12409). Constants: no gradient.
        backend: "triton", "cuda", "cpu", "flash", "torch" or "auto"; None reads EMERGENCE_KERNELS_BACKEND.

    Returns:
        (B, T, H, D). Every query sees itself, so no row is empty. Softcap, sinks and alibi are computed by "triton" and "torch"
        only; the latter makes (T, T) matrices for them.

    Raises:
        ValueError: shapes, dtypes or devices do not match. BackendError: the named backend cannot run.
    """
    q, k, v = autocast(q, k, v)
    plan = as_plan(document_ids)
    ids = None if plan is None else plan.ids
    options = Options(causal, scale, ids, window, deterministic, softcap, sinks, alibi)
    options, backend = checked("attention", q, k, v, options, plan, backend)
    if backend not in OWN:
        return by_others(q, k, v, options, plan, backend)
    return _attention(q, k, v, *options.arguments(backend))[0]


def document_plan(
    document_ids: Tensor,
    *,
    heads: int,
    head_dim: int,
    dtype: torch.dtype,
    causal: bool = True,
    window: int | None = None,
    deterministic: bool = False,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi: Tensor | None = None,
    adjacent: bool = False,
    backend: str | None = None,
) -> DocumentPlan:
    """What attention with these arguments needs of document ids, computed once for every layer, and for backward.

    Args:
        document_ids: (B, T) integers, as for attention.
        heads, head_dim, dtype: of the queries; under autocast attention's dtype is that of autocast.
        causal, window, deterministic, softcap, sinks, alibi, backend: as attention will be called.
        adjacent: the positions of a document are adjacent (ids do not come back within a row). flash-attn's kernels for
            documents need that; their number of documents is waited for, so they are not offered while a CUDA graph is captured.

    Returns:
        The plan, to be passed as document_ids. Attention with other arguments than these is right too, and computes what is
        missing.

    Raises:
        ValueError: ids of a wrong dtype, or on a CPU (elsewhere with EMERGENCE_KERNELS_DEBUG=1) `adjacent` ids that come back.
    """
    plan = DocumentPlan(document_ids)
    if traced():
        return plan
    require(
        document_ids.dim() == 2,
        lambda: f"document_plan: document_ids have shape {tuple(document_ids.shape)}, expected (B, T)",
    )
    (q,) = autocast(torch.empty((), dtype=dtype, device=document_ids.device))
    q = q.expand(*document_ids.shape, heads, head_dim)  # stands for the queries: shape, dtype and device are read
    options = Options(causal, None, document_ids, window, deterministic, softcap, sinks, alibi)
    if adjacent:
        _check_adjacent(document_ids)
        if not _capturing(document_ids):
            plan = plan._replace(cu_seqlens=document_ids)  # stands for them: could flash-attn be given them?
    options, chosen = checked("document_plan", q, q, q, options, plan, backend)
    if chosen == "flash":
        return DocumentPlan(document_ids, cu_seqlens=starts_of_documents(document_ids))
    blocks = kernels_of(chosen).document_blocks(q, options, torch.is_grad_enabled()) if chosen in OWN else []
    return planned(document_ids, blocks)


def _capturing(ids_BT: Tensor) -> bool:
    return ids_BT.is_cuda and torch.cuda.is_current_stream_capturing()


def _check_adjacent(ids_BT: Tensor) -> None:
    if checks_values(ids_BT.device) and ids_BT.numel():
        runs = 1 + (ids_BT[:, 1:] != ids_BT[:, :-1]).sum(1)
        documents = torch.tensor([row.unique().numel() for row in ids_BT], device=ids_BT.device)
        require(bool((runs == documents).all()), "document_plan: adjacent=True, but an id comes back within a row")


def as_plan(document_ids: Tensor | DocumentPlan | None) -> DocumentPlan | None:
    return DocumentPlan(document_ids) if isinstance(document_ids, Tensor) else document_ids


def checked(
    op: str, q: Tensor, k: Tensor, v: Tensor, options: Options, plan: DocumentPlan | None, backend: str | None
) -> tuple[Options, str]:
    """Check the arguments; return the options, with torch's setting for determinism and the plan's ranges, and the backend."""
    check_float(op, q=q, k=k, v=v)
    require(q.dim() == 4, lambda: f"{op}: q must be (batch, seq, heads, head_dim), got shape {tuple(q.shape)}")
    require(k.shape == v.shape, lambda: f"{op}: k has shape {tuple(k.shape)} but v has {tuple(v.shape)}")
    B, T, H, D = q.shape
    require(D > 0, lambda: f"{op}: q has no features, its shape is {tuple(q.shape)}")
    require(
        k.dim() == 4 and k.shape[0] == B and k.shape[1] == T and k.shape[3] == D,
        lambda: f"{op}: k has shape {tuple(k.shape)}, expected ({B}, {T}, key heads, {D}) to match q",
    )
    G = k.shape[2]
    require(G > 0 and H % G == 0, lambda: f"{op}: {H} query heads cannot share {G} key heads: {G} must divide {H}")
    document_ids, window, deterministic = options.document_ids, options.window, options.deterministic
    require(window is None or window >= 1, lambda: f"{op}: window must be at least 1, got {window}")
    if document_ids is not None:
        require(
            tuple(document_ids.shape) == (B, T),
            lambda: f"{op}: document_ids have shape {tuple(document_ids.shape)}, expected ({B}, {T})",
        )
        require(
            document_ids.dtype in (torch.int32, torch.int64),
            lambda: f"{op}: document_ids have dtype {document_ids.dtype}; expected int32 or int64",
        )
        require(
            document_ids.device == q.device,
            lambda: f"{op}: document_ids are on {document_ids.device}, q on {q.device}",
        )
    _check_scores(op, q, options)
    if not deterministic and torch.are_deterministic_algorithms_enabled():
        options = options._replace(deterministic=True)
    limits = _limits(q, options, plan)
    kind = "documents" if document_ids is not None else "window" if window else "causal" if options.causal else "full"
    avoid = () if options.changes_scores else slow_products(q)  # "torch" has matrices of scores then
    backend = resolve_backend(backend, "attention", q.device, limits, avoid, _order(q, kind))
    if plan is not None and plan.ranges is not None:
        options = options._replace(ranges=plan.ranges, range_blocks=plan.range_blocks)
    return options, backend


def _check_scores(op: str, q: Tensor, options: Options) -> None:
    softcap, sinks, biases = options.softcap, options.sinks, options.biases()
    require(
        softcap is None or 0 < softcap < math.inf,
        lambda: f"{op}: softcap must be positive and finite, got {softcap}; None is without",
    )
    require(
        len(biases) < 2, lambda: f"{op}: {' and '.join(biases)} are biases of the scores, of which one can be given"
    )
    if sinks is not None:
        _check_by_head(op, "sinks", sinks, q)
    for name, tensor in biases.items():
        _check_by_head(op, name, tensor, q)
    require(
        not any(tensor.requires_grad for tensor in biases.values()),
        lambda: f"{op}: the parameters of {', '.join(biases)} are constants; pass them detached",
    )


def _check_by_head(op: str, name: str, tensor: Tensor, q: Tensor) -> None:
    H = q.shape[2]
    check_float(op, **{name: tensor})
    shape = tuple(tensor.shape)
    require(shape == (H,), lambda: f"{op}: {name} have shape {shape}, expected ({H},)")
    require(tensor.device == q.device, lambda: f"{op}: {name} are on {tensor.device}, q on {q.device}")


def _limits(q: Tensor, options: Options, plan: DocumentPlan | None) -> dict[str, str | None]:
    """For each backend the reason why it cannot compute this, or None."""
    limits = dtype_limits(q) | {
        "flash": flash_backend.unsupported_reason(q, plan, options.window, options.deterministic, options.causal),
        "cuda": compiled_attention.unsupported_reason(q),
    }
    if q.shape[3] > MAX_HEAD_DIM:
        limits["triton"] = f"head dim {q.shape[3]} is more than {MAX_HEAD_DIM}"
    if options.changes_scores:
        limits |= dict.fromkeys(
            ("flash", "cuda", "cpu"), f"softcap, sinks and {' and '.join(BIASES)} are computed by 'triton' and 'torch'"
        )
    return limits


def _order(q: Tensor, kind: str) -> list[str] | tuple[str, ...]:
    """Backends, fastest first by measurement: with this mask, else with the causal one."""
    for known in (kind, "causal"):
        if order := fastest(f"attention, {known}", q.device, q.dtype, (q.shape[3], q.shape[1])):
            return order
    return compiled_attention.order(q)


def by_others(q: Tensor, k: Tensor, v: Tensor, options: Options, plan: DocumentPlan | None, backend: str) -> Tensor:
    """Attention by "torch" and "flash", which have their own autograd."""
    causal, scale, window, deterministic = options.causal, options.scale, options.window, options.deterministic
    if backend == "flash":
        return flash_backend.attention(
            q, k, v, causal=causal, scale=scale, window=window, deterministic=deterministic, plan=plan
        )
    exact = deterministic and q.device.type == "cuda"  # PyTorch's fused backward passes add with atomics
    with sdpa_kernel(SDPBackend.MATH) if exact else nullcontext():
        return attention_torch(
            q,
            k,
            v,
            causal=causal,
            scale=scale,
            document_ids=options.document_ids,
            window=window,
            softcap=options.softcap,
            sinks=options.sinks,
            alibi=options.alibi,
        )


def kernels_of(backend: str) -> ModuleType:
    if backend == "triton":
        from . import triton as attention  # imports Triton

        return attention
    return cpu_attention if backend == "cpu" else compiled_attention


def _forward(q: Tensor, k: Tensor, v: Tensor, *rest) -> tuple[Tensor, Tensor]:
    options, backend = Options.parse(rest)
    return kernels_of(backend).forward(q, k, v, options)


def _gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest
) -> tuple[Tensor, Tensor, Tensor]:
    options, backend = Options.parse(rest)
    return kernels_of(backend).backward(grad, Saved(q, k, v, out, lse), options)


def _sinks_gradient(grad: Tensor, out: Tensor, lse: Tensor, sinks: Tensor, backend: str) -> Tensor:
    return kernels_of(backend).sinks_gradient(grad, out, lse, sinks)


# Apart from attention_backward, whose results are a contract. It reads out and grad once more.
sinks_gradient = Op(
    "attention_sinks_gradient(Tensor grad, Tensor out, Tensor lse, Tensor sinks, str backend) -> Tensor",
    _sinks_gradient,
    lambda grad, out, lse, sinks, backend: sinks.new_empty(sinks.shape),
).define()


def _save(ctx, inputs: tuple, outputs: tuple[Tensor, Tensor]) -> None:
    q, k, v, *given = inputs
    options, ctx.backend = Options.parse(tuple(given))
    ctx.save_for_backward(q, k, v, *outputs, *options.tensors())
    ctx.options = options.without_tensors()


def _backward(ctx, gradients, grad: Tensor | None, _) -> tuple[Tensor | None, ...]:
    if grad is None:
        return ()
    q, k, v, out, lse, *tensors = ctx.saved_tensors
    options = ctx.options.with_tensors(tuple(tensors))
    dq, dk, dv = gradients(grad, q, k, v, out, lse, *options.arguments(ctx.backend))
    if options.sinks is None or not ctx.needs_input_grad[3 + SINKS]:
        return dq, dk, dv
    return dq, dk, dv, *(None,) * SINKS, sinks_gradient(grad, out, lse, options.sinks, ctx.backend)


def _fake(q, *_):
    B, T, H, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((B, H, T), dtype=torch.float32)


_attention = register_op(
    Op(f"attention(Tensor q, Tensor k, Tensor v, {SCHEMA}) -> (Tensor, Tensor)", _forward, _fake),
    Op(
        f"attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {SCHEMA})"
        " -> (Tensor, Tensor, Tensor)",
        _gradients,
        lambda grad, q, k, v, *_: (q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)),
    ),
    _save,
    _backward,
)
