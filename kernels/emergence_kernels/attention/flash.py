"""Attention by flash-attn 3, 4 or 2 where installed, else by PyTorch's cuDNN and flash kernels."""

import importlib.util
import os
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..backends.tracing import constant_while_tracing, traced
from .document_ranges import DocumentPlan
from .inputs import grouped

# Generations of flash-attn, preferred first, and the major compute capabilities that they are used on.
GENERATIONS = {3: (9,), 4: (9, 10, 11), 2: (8, 9, 10, 11, 12)}
MODULES = {2: "flash_attn", 3: "flash_attn_interface", 4: "flash_attn.cute"}


@cache
@constant_while_tracing  # inside: dynamo traces through the cache
def import_error(generation: int) -> str | None:
    """The reason why a generation cannot be used, or None. Importing it is the only way to know: one built for another torch, or
    without what it compiles with, is installed too. 4 is a folder `cute`, in 2's package or in one without an __init__."""
    try:
        module = _module(generation)
    except Exception as error:  # noqa: BLE001
        return f"flash-attn {generation} cannot be imported: {type(error).__name__}: {error}"
    return None if hasattr(module, "flash_attn_func") else f"flash-attn {generation} has no flash_attn_func"


def installed() -> tuple[int, ...]:
    """Those of GENERATIONS that can be imported."""
    return tuple(generation for generation in GENERATIONS if import_error(generation) is None)


def missing() -> str:
    """The reasons why no flash-attn is used: of those that are installed, else that none is."""
    packages = {generation: MODULES[generation].split(".")[0] for generation in GENERATIONS}
    errors = {each: import_error(each) or "" for each, package in packages.items() if importlib.util.find_spec(package)}
    # 4 is in 2's package, where it may be absent
    broken = [error for each, error in errors.items() if error and f"No module named '{MODULES[each]}'" not in error]
    return "; ".join(broken) or "flash-attn is not installed for this device"


def generation(q: Tensor) -> int | None:
    """The generation of flash-attn for q; None: PyTorch's kernels."""
    major = torch.cuda.get_device_capability(q.device)[0]
    for each in GENERATIONS:
        # 4 compiles its kernels in Python, which torch.compile cannot trace, and supports head dims up to 128 beyond Hopper.
        fits = each != 4 or (not traced() and (major == 9 or q.shape[-1] <= 128))
        if major in GENERATIONS[each] and fits and import_error(each) is None:
            return each
    return None


def unsupported_reason(
    q: Tensor, plan: DocumentPlan | None, window: int | None, deterministic: bool, causal: bool = True
) -> str | None:
    """The reason why this backend cannot compute such an attention, or None."""
    if q.device.type != "cuda":
        return f"the tensors are on {q.device.type}, and flash attention needs a CUDA device"
    if q.dtype not in (torch.bfloat16, torch.float16):
        return f"flash attention supports bfloat16 and float16, not {q.dtype}"
    if q.shape[-1] > 256 or q.shape[-1] % 8:
        return f"flash attention supports head dims that are multiples of 8 up to 256, not {q.shape[-1]}"
    by = generation(q)
    if plan is not None:
        return _reason_by_documents(plan, window, deterministic, causal, by)
    if (window is not None or deterministic) and by is None:
        return f"PyTorch's kernels have no window and no deterministic backward, and {missing()}"
    return None


def _reason_by_documents(
    plan: DocumentPlan, window: int | None, deterministic: bool, causal: bool, by: int | None
) -> str | None:
    """Of documents only the mask that flash_attn_varlen_func is made for: causal within adjacent positions, nothing else."""
    if by is None:
        return f"document masks are computed by 'triton' and 'torch', or by flash-attn, and {missing()}"
    if plan.cu_seqlens is None:
        return "document masks are computed by 'triton' and 'torch', or from document_plan(..., adjacent=True)"
    if window is not None or not causal:
        return "documents with a window or without a causal mask are computed by 'triton' and 'torch'"
    if deterministic and by == 4:
        return "flash-attn 4 has no deterministic backward pass of documents"
    return None


@constant_while_tracing
def _good_cudnn(device: torch.device) -> bool:
    """Whether PyTorch itself would prefer cuDNN: on sm_90 and sm_100, beyond cuDNN 9.15.0, unless it is off. Older versions are
    wrong where the length is not a multiple of 128 (PyTorch issue 169849), and PyTorch does not check a forced kernel."""
    if not torch.backends.cuda.cudnn_sdp_enabled() or os.environ.get("TORCH_CUDNN_SDPA_DEPRIORITIZED", "0") == "1":
        return False
    if device.type != "cuda" or torch.cuda.get_device_capability(device) not in ((9, 0), (10, 0)):
        return False
    return (torch.backends.cudnn.version() or 0) > 91500


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    scale: float | None,
    window: int | None,
    deterministic: bool,
    plan: DocumentPlan | None = None,
    by: int | None = None,
) -> Tensor:
    """q (B, T, H, D), k and v (B, T, G, D) -> (B, T, H, D). by: a generation instead of the preferred one."""
    by = by or generation(q)
    if plan is not None:
        return _of_documents(q, k, v, plan, scale, deterministic, by)
    if by is None:
        kernels = [SDPBackend.FLASH_ATTENTION]
        if _good_cudnn(q.device):
            kernels.insert(0, SDPBackend.CUDNN_ATTENTION)
        with sdpa_kernel(kernels, set_priority=True):
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            out = F.scaled_dot_product_attention(
                q, k, v, is_causal=causal, scale=scale, enable_gqa=grouped(q.shape[1], k.shape[1])
            )
        return out.transpose(1, 2)
    all_keys = (None, None) if by == 4 else (-1, -1)
    near = all_keys if window is None else (window - 1, 0 if causal else window - 1)
    attend = _module(by).flash_attn_func
    return _first(attend(q, k, v, softmax_scale=scale, causal=causal, window_size=near, deterministic=deterministic))


def _of_documents(
    q: Tensor, k: Tensor, v: Tensor, plan: DocumentPlan, scale: float | None, deterministic: bool, by: int | None
) -> Tensor:
    """Causal within each document, by the sequences one after the other and the positions where documents begin."""
    assert by is not None and plan.cu_seqlens is not None, "unsupported_reason"
    T, starts = q.shape[1], plan.cu_seqlens
    # T is a bound: no document crosses the end of a row. Blocks of queries beyond a document's length end at once.
    options: dict[str, Any] = {"cu_seqlens_q": starts, "cu_seqlens_k": starts, "max_seqlen_q": T, "max_seqlen_k": T}
    if deterministic:  # which 4 does not take
        options["deterministic"] = True
    flat = (t.flatten(0, 1) for t in (q, k, v))
    out = _first(_module(by).flash_attn_varlen_func(*flat, **options, softmax_scale=scale, causal=True))
    return out.view(q.shape)


def _module(generation: int) -> Any:
    return importlib.import_module(MODULES[generation])


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out
