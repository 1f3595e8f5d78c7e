"""Attention by flash-attn 3, 4 or 2 where installed, else by PyTorch's cuDNN and flash kernels."""

import importlib.util
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..backends.tracing import constant_while_tracing

# Generations of flash-attn, preferred first, and the major compute capabilities that they are used on.
GENERATIONS = {3: (9,), 4: (9, 10, 11), 2: (8, 9, 10, 11, 12)}


@cache
@constant_while_tracing  # inside: dynamo traces through the cache
def installed() -> tuple[int, ...]:
    """Those of GENERATIONS that can be imported. 4 is a folder `cute`, in 2's package or in one without an __init__."""
    generations = {3: importlib.util.find_spec("flash_attn_interface") is not None}
    if spec := importlib.util.find_spec("flash_attn"):
        generations[2] = spec.origin is not None
        folders = [Path(folder) / "cute" for folder in spec.submodule_search_locations or ()]
        generations[4] = (
            any(folder.is_dir() for folder in folders) and importlib.util.find_spec("nvidia_cutlass_dsl") is not None
        )
    return tuple(generation for generation in GENERATIONS if generations.get(generation))


def generation(q: Tensor) -> int | None:
    """The generation of flash-attn for q; None: PyTorch's kernels."""
    major = torch.cuda.get_device_capability(q.device)[0]
    for each in installed():
        # 4 compiles its kernels in Python, which torch.compile cannot trace, and supports head dims up to 128 beyond Hopper.
        fits = each != 4 or (not torch.compiler.is_compiling() and (major == 9 or q.shape[-1] <= 128))
        if major in GENERATIONS[each] and fits:
            return each
    return None


def unsupported_reason(q: Tensor, document_ids: Tensor | None, window: int | None, deterministic: bool) -> str | None:
    """The reason why this backend cannot compute such an attention, or None."""
    if q.device.type != "cuda":
        return f"the tensors are on {q.device.type}, and flash attention needs a CUDA device"
    if q.dtype not in (torch.bfloat16, torch.float16):
        return f"flash attention supports bfloat16 and float16, not {q.dtype}"
    if q.shape[-1] > 256 or q.shape[-1] % 8:
        return f"flash attention supports head dims that are multiples of 8 up to 256, not {q.shape[-1]}"
    if document_ids is not None:
        return "document masks are computed by 'triton' and 'torch'"
    if (window is not None or deterministic) and generation(q) is None:
        return "without flash-attn installed, PyTorch's kernels have no window and no deterministic backward"
    return None


@constant_while_tracing
def _good_cudnn(device: torch.device) -> bool:
    """Whether PyTorch itself would prefer cuDNN: on Hopper and sm_100, beyond cuDNN 9.15.0. Older versions are wrong where the
    length is not a multiple of 128 (PyTorch issue 169849), and PyTorch does not check a forced kernel."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] not in (9, 10):
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
    by: int | None = None,
) -> Tensor:
    """q (B, T, H, D), k and v (B, T, G, D) -> (B, T, H, D). by: a generation instead of the preferred one."""
    by = by or generation(q)
    if by is None:
        kernels = [SDPBackend.FLASH_ATTENTION]
        if _good_cudnn(q.device):
            kernels.insert(0, SDPBackend.CUDNN_ATTENTION)
        with sdpa_kernel(kernels, set_priority=True):
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            out = F.scaled_dot_product_attention(
                q, k, v, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
            )
        return out.transpose(1, 2)
    if by == 3:
        from flash_attn_interface import flash_attn_func
    elif by == 4:
        from flash_attn.cute import flash_attn_func
    else:
        from flash_attn import flash_attn_func
    all_keys = (None, None) if by == 4 else (-1, -1)
    near = all_keys if window is None else (window - 1, 0 if causal else window - 1)
    out = flash_attn_func(q, k, v, softmax_scale=scale, causal=causal, window_size=near, deterministic=deterministic)
    return out[0] if isinstance(out, tuple) else out
