"""Attention written out with a full matrix of scores, the oracle of its tests, and their inputs."""

import torch


def plain(q, k, v, causal=True, scale=None, document_ids=None, window=None):
    """Softmax over a (T, T) matrix in the inputs' dtype (float32 softmax for 16-bit inputs)."""
    B, T, H, D = q.shape
    k, v = (t.repeat_interleave(H // t.shape[2], dim=2) for t in (k, v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) * (D**-0.5 if scale is None else scale)
    wide = scores.double() if q.dtype == torch.float64 else scores.float()
    distance = torch.arange(T, device=q.device)[:, None] - torch.arange(T, device=q.device)[None, :]
    seen = torch.ones(B, 1, T, T, dtype=torch.bool, device=q.device)
    if causal:
        seen = seen & (distance >= 0)
    if window is not None:
        seen = seen & (distance < window) & (distance > -window)
    if document_ids is not None:
        seen = seen & (document_ids[:, None, :, None] == document_ids[:, None, None, :])
    p = torch.softmax(wide.masked_fill(~seen, float("-inf")), -1).to(q.dtype)
    return torch.einsum("bhts,bshd->bthd", p, v)


def make(shape, layout, dtype, device):
    B, T, H, G, D = shape
    if layout == "heads first":
        tensors = [torch.randn(B, h, T, D).transpose(1, 2) for h in (H, G, G)]
    elif layout == "expanded":
        tensors = [torch.randn(B, T, 1, D).expand(B, T, h, D) for h in (H, G, G)]
    elif layout == "one projection":  # q, k, v cut out of one matrix
        tensors = list(torch.randn(B, T, H + 2 * G, D).split((H, G, G), dim=2))
    else:
        tensors = [torch.randn(B, T, h, D) for h in (H, G, G)]
    if layout == "peaked":
        tensors[0] = tensors[0] * 12
    if layout == "expanded":
        return [t[:, :, :1].to(device, dtype).expand_as(t) for t in tensors]
    return [torch.empty_strided(t.shape, t.stride(), dtype=dtype, device=device).copy_(t) for t in tensors]


def documents(kind, B, T, device):
    if kind is None:
        return None
    if kind == "packed":
        return (torch.rand(B, T) < 0.08).cumsum(1).to(device)
    return torch.randint(-2, 3, (B, T), device=device)
