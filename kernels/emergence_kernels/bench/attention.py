"""Cases of attention: SDPA by each of its kernels, FlexAttention, flash-attn, and this package."""

import importlib
import inspect
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..attention import compiled as compiled_attention
from ..attention import flash as flash_backend
from ..attention import hopper as attention_hopper
from ..attention.op import as_plan, attention
from ..attention.reference import attention as attention_torch
from . import variants
from .candidate import Candidate, Case, Forward, constant, peers_first, relative

# (batch, seq, query heads, key heads, head_dim, kind)
SHAPES = {
    "full": [
        *(
            (16384 // t, t, 2048 // d, 2048 // d, d, "causal")
            for d in (64, 128)
            for t in (1024, 2048, 4096, 8192, 16384)
        ),
        (4, 4096, 32, 8, 128, "causal"),
        (8, 2048, 16, 16, 128, "documents"),
        (2, 8192, 16, 16, 128, "window"),
        (4, 4096, 16, 16, 128, "full"),
        (8, 2048, 24, 24, 80, "causal"),
        (8, 2048, 20, 20, 96, "causal"),
    ],
    "short": [
        (16, 1024, 16, 16, 64, "causal"),
        (16, 1024, 16, 16, 128, "causal"),
        (8, 2048, 16, 16, 64, "causal"),
        (8, 2048, 16, 16, 128, "causal"),
        (4, 4096, 32, 32, 64, "causal"),
        (4, 4096, 16, 16, 128, "causal"),
        (1, 16384, 16, 16, 128, "causal"),
        (4, 4096, 32, 8, 128, "causal"),
        (8, 2048, 16, 16, 128, "documents"),
        (2, 8192, 16, 16, 128, "window"),
    ],
    "laptop": [(8, 256, 4, 4, 32, "causal"), (8, 256, 8, 8, 64, "causal"), (8, 256, 4, 4, 32, "documents")],
    "tiny": [(1, 32, 2, 1, 16, "causal")],
}
WINDOW = 1024
DOCUMENTS = 4  # a row, of one length


def _flex(q: Tensor, k: Tensor, v: Tensor, kind: str, ids: Tensor | None) -> Forward:
    """FlexAttention with its block mask made beforehand, compiled."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def visible(b, h, i, j):
        seen = i >= j
        if ids is not None:
            seen = seen & (ids[b, i] == ids[b, j])
        if kind == "window":
            seen = seen & (i - j < WINDOW)
        return seen

    mask = None
    if kind != "full":
        batch = q.shape[0] if kind == "documents" else None
        mask = create_block_mask(visible, batch, None, q.shape[1], q.shape[1], device=q.device)
    compiled = torch.compile(flex_attention, dynamic=False)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return lambda: compiled(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool, kernel: SDPBackend) -> Tensor:
    with sdpa_kernel(kernel):
        q_BHTD, k_BGTD, v_BGTD = (t.transpose(1, 2) for t in (q, k, v))
        gqa = q.shape[2] != k.shape[2]
        out = F.scaled_dot_product_attention(q_BHTD, k_BGTD, v_BGTD, is_causal=causal, enable_gqa=gqa)
    return out.transpose(1, 2)


def _varlen(q: Tensor, k: Tensor, v: Tensor) -> Iterator[tuple[str, Forward]]:
    """(name, callable) of attention over packed documents, given where each begins, which is known beforehand."""
    (B, T), flat = q.shape[:2], [t.flatten(0, 1) for t in (q, k, v)]
    longest = T // DOCUMENTS
    begins = torch.arange(0, B * T + 1, longest, device=q.device, dtype=torch.int32)
    lengths = {"cu_seqlens_q": begins, "cu_seqlens_k": begins, "max_seqlen_q": longest, "max_seqlen_k": longest}

    def by_flash(version: int) -> Tensor:
        out = importlib.import_module(flash_backend.MODULES[version]).flash_attn_varlen_func(
            *flat, **lengths, causal=True
        )
        return (out[0] if isinstance(out, tuple) else out).view(q.shape)

    def by_pytorch() -> Tensor:
        attend: Any = importlib.import_module("torch.nn.attention.varlen").varlen_attn  # since PyTorch 2.10
        names = inspect.signature(attend).parameters
        options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in names else {"is_causal": True}
        if q.shape[2] != k.shape[2]:
            options["enable_gqa"] = True
        return attend(*flat, *lengths.values(), **options).view(q.shape)

    for version in flash_backend.installed():
        yield f"flash-attn {version}, varlen", partial(by_flash, version)
    yield "PyTorch, varlen", by_pytorch


def _exact(q: Tensor, k: Tensor, v: Tensor, upstream: Tensor, options) -> tuple[Tensor, ...]:
    """Output, dq, dk and dv of one key head of one sequence and the heads that read it, in float64."""
    group = q.shape[2] // k.shape[2]
    a, b, c = (t[:1, :, :n].detach().double().requires_grad_() for t, n in ((q, group), (k, 1), (v, 1)))
    ids = options["document_ids"]
    mine = options | {"document_ids": None if ids is None else ids[:1]}
    out = attention_torch(a, b, c, scale=None, **mine)
    return out.detach(), *torch.autograd.grad(out, (a, b, c), upstream[:1, :, :group].double())


def _errors(exact: Callable[[], tuple[Tensor, ...]], results: tuple[Tensor, ...]) -> dict[str, float]:
    pairs = zip(("out", "dq", "dk", "dv"), results, exact())
    return {name: relative(got[:1, :, : wanted.shape[2]], wanted) for name, got, wanted in pairs}


def _pairs(T: int, kind: str) -> float:
    """Query-key pairs that may see each other, per head."""
    if kind == "full":
        return float(T) * T
    if kind == "window":
        near = min(WINDOW, T)
        return near * (near + 1) / 2 + (T - near) * near
    if kind == "documents":
        near = T // DOCUMENTS
        return DOCUMENTS * near * (near + 1) / 2
    return T * (T + 1) / 2


def cases(suite: str, device: torch.device, dtype: torch.dtype, backends: list[str]) -> Iterator[Case]:
    for B, T, H, G, D, kind in SHAPES[suite]:
        torch.manual_seed(0)
        q, k, v = (torch.randn(B, T, h, D, device=device).to(dtype).requires_grad_() for h in (H, G, G))
        upstream = torch.randn(B, T, H, D, device=device).to(dtype)
        ids = None
        if kind == "documents":
            ids = (torch.arange(T, device=device) // (T // DOCUMENTS)).expand(B, T).contiguous()
        options: dict[str, Any] = dict(
            causal=kind != "full", document_ids=ids, window=WINDOW if kind == "window" else None
        )
        runs: list[tuple[str, Forward]] = []
        names = [*backends]
        if flash_backend.unsupported_reason(q, as_plan(ids), options["window"], False) is None:
            names.append("flash")  # as "auto" may take it: flash-attn, else PyTorch's kernels
        for backend in names:
            if backend == "torch" and kind in ("documents", "window") and device.type == "cuda":
                continue  # a (B, T, T) mask: not what anybody would run
            if backend == "cuda" and compiled_attention.unsupported_reason(q) is not None:
                continue  # float32
            runs.append((f"emergence {backend}", partial(attention, q, k, v, backend=backend, **options)))
        if device.type == "cuda":
            if kind in ("causal", "full"):
                for name, kernel in (("flash", SDPBackend.FLASH_ATTENTION), ("cuDNN", SDPBackend.CUDNN_ATTENTION)):
                    runs.append((f"SDPA {name}", partial(_sdpa, q, k, v, kind == "causal", kernel)))
            runs.append(("FlexAttention", _flex(q, k, v, kind, ids)))
            for version in flash_backend.installed() if kind != "documents" else ():
                flash = partial(flash_backend.attention, q, k, v, scale=None, deterministic=False, by=version)
                runs.append((f"flash-attn {version}", partial(flash, causal=kind != "full", window=options["window"])))
            if kind == "documents":
                runs += _varlen(q, k, v)
        runs.sort(key=peers_first)
        candidates: list[Callable[[], Candidate]] = [partial(Candidate, name, run, (q, k, v)) for name, run in runs]
        if "cuda" in backends and device.type == "cuda" and compiled_attention.unsupported_reason(q) is None:
            usual = partial(attention, q, k, v, backend="cuda", **options)
            ours = [("emergence cuda", usual), ("emergence cuda, deterministic", partial(usual, deterministic=True))]
            candidates.append(partial(Candidate, *ours[1], (q, k, v)))
            if attention_hopper.unsupported_reason(q) is None:
                of_sm_80 = (compiled_attention.KERNELS, "sm_90"), compiled_attention.KERNELS["sm_80"]
                candidates += [
                    partial(variants.in_place, Candidate(*own, (q, k, v)), "sm_80's", *of_sm_80) for own in ours
                ]
        product = 2.0 * B * H * D * _pairs(T, kind)
        yield Case(
            op="attention",
            shape={"batch": B, "seq": T, "heads": H, "key_heads": G, "head_dim": D, "kind": kind},
            candidates=candidates,
            flops={"eval": 2 * product, "forward": 2 * product, "backward": 5 * product, "both": 7 * product},
            formula="2 products forward, 5 backward, over the visible pairs only",
            upstream=constant(upstream),
            errors=partial(_errors, cache(partial(_exact, q, k, v, upstream, options))),
        )
