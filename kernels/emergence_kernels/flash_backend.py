"""Attention by kernels of others: flash-attn 3 or 2 if installed, else PyTorch's cuDNN and flash kernels."""

import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def _installed() -> int | None:
    for name, version in (("flash_attn_interface", 3), ("flash_attn", 2)):
        if importlib.util.find_spec(name) is not None:
            return version
    return None


FLASH_ATTN = _installed()  # 3 (flash_attn_interface), 2 (flash_attn), or None


def why_not(q: Tensor, document_ids: Tensor | None, window: int | None, deterministic: bool) -> str | None:
    """The reason why this backend cannot compute such an attention, or None."""
    if q.device.type != "cuda":
        return f"the tensors are on {q.device.type}, and flash attention needs a CUDA device"
    if q.dtype not in (torch.bfloat16, torch.float16):
        return f"flash attention takes bfloat16 or float16, not {q.dtype}"
    if q.shape[-1] > 256 or q.shape[-1] % 8:
        return f"flash attention takes head dims that are multiples of 8 up to 256, not {q.shape[-1]}"
    if document_ids is not None:
        return "document masks are computed by 'triton' and 'torch'"
    if FLASH_ATTN is None and (window is not None or deterministic):
        return "without flash-attn installed, PyTorch's kernels have no window and no deterministic backward"
    return None


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float | None, window: int | None, deterministic: bool
) -> Tensor:
    """q (B, T, H, D), k and v (B, T, G, D) -> (B, T, H, D)."""
    if FLASH_ATTN is not None:
        near = (-1, -1) if window is None else (window - 1, 0 if causal else window - 1)
        options = dict(softmax_scale=scale, causal=causal, window_size=near, deterministic=deterministic)
        if FLASH_ATTN == 3:
            from flash_attn_interface import flash_attn_func

            out = flash_attn_func(q, k, v, **options)
            return out[0] if isinstance(out, tuple) else out
        from flash_attn import flash_attn_func

        return flash_attn_func(q, k, v, **options)
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True):
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            is_causal=causal,
            scale=scale,
            enable_gqa=q.shape[2] != k.shape[2],
        )
    return out.transpose(1, 2)
