"""One training step end to end, kernels on and off: a Llama-like decoder built on the operations of this package."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention.op import attention
from ..cross_entropy.lm_head import LMHead
from ..rms_norm.op import rms_norm
from ..rotary.op import rotary
from ..rotary.reference import rotary as rotary_torch

# width, feed-forward width, heads, layers, vocabulary, batch, sequence. "full" has 467M parameters without embeddings.
SHAPES = {
    "full": [(1536, 4288, 12, 16, 50304, 16, 1024)],
    "short": [(1536, 4288, 12, 16, 50304, 8, 1024)],
    "laptop": [(128, 384, 4, 4, 4096, 8, 256), (256, 768, 4, 6, 4096, 8, 256)],
    "tiny": [(32, 64, 2, 1, 67, 2, 8)],
}


def add_norm(x: Tensor, branch: Tensor, weight: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """-> norm(x + branch), x + branch."""
    if backend == "plain":
        x = x + branch
        return F.rms_norm(x, weight.shape, weight, 1e-6), x
    y, total = rms_norm(branch, weight, residual=x, backend=backend)
    return y, total


def mix(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, backend: str) -> Tensor:
    """Causal attention of rotated queries and keys (B, T, H, D)."""
    if backend == "plain":
        q_BHTD, k_BHTD = (rotary_torch(t, cos, sin).transpose(1, 2) for t in (q, k))
        return F.scaled_dot_product_attention(q_BHTD, k_BHTD, v.transpose(1, 2), is_causal=True).transpose(1, 2)
    q, k = (rotary(t, cos, sin, backend=backend) for t in (q, k))
    return attention(q, k, v, backend=backend)


class Block(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int, backend: str):
        super().__init__()
        self.heads, self.backend = heads, backend
        self.norms = nn.ParameterList(torch.ones(width) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor, branch_BTD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """(residual, what is to be added to it) -> the same after the block, so that each addition meets a norm."""
        B, T, D = x_BTD.shape
        y, x_BTD = add_norm(x_BTD, branch_BTD, self.norms[0], self.backend)
        q, k, v = self.qkv(y).view(B, T, 3 * self.heads, -1).split(self.heads, dim=2)
        branch_BTD = self.out(mix(q, k, v, cos, sin, self.backend).reshape(B, T, D))
        y, x_BTD = add_norm(x_BTD, branch_BTD, self.norms[1], self.backend)
        gate, up = self.up(y).chunk(2, -1)
        return x_BTD, self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int, layers: int, vocabulary: int, T: int, backend: str):
        super().__init__()
        self.backend = backend
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(width, hidden, heads, backend) for _ in range(layers))
        self.norm = nn.Parameter(torch.ones(width))
        self.head = LMHead(embedding=self.embedding)
        half = width // heads // 2
        angle = torch.arange(T)[:, None] / 10000 ** (torch.arange(half) / half)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        x = self.embedding(tokens_BT)
        branch = torch.zeros_like(x)
        for block in self.blocks:
            x, branch = block(x, branch, self.cos, self.sin)
        y, _ = add_norm(x, branch, self.norm, self.backend)
        if self.backend == "plain":
            return F.cross_entropy(self.head(y).flatten(0, 1).float(), targets_BT.flatten())
        return self.head(y, targets_BT, backend=self.backend).loss


def flops_per_token(model: Model, width: int, layers: int, T: int) -> float:
    """6 N + 6 L d T: N all parameters that multiply (the tied head once), attention's causal half, no recomputation."""
    multiplied = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    return 6.0 * multiplied + 6.0 * layers * width * T


def steps(suite: str, device: torch.device, dtype: torch.dtype, names: list[str]) -> Iterator[dict]:
    """{name, shape, run, tokens, flops} of each variant: "plain" or a backend, " + compile" for compiled blocks."""
    for width, hidden, heads, layers, vocabulary, B, T in SHAPES[suite]:
        for name in names:
            torch.manual_seed(0)
            backend, _, compiled = name.partition(" + ")
            model = Model(width, hidden, heads, layers, vocabulary, T, backend).to(device)
            model = model.to(dtype)
            model.cos, model.sin = model.cos.float(), model.sin.float()
            if compiled:
                for block in model.blocks:
                    block.compile(fullgraph=True, dynamic=False)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
            data = torch.randint(vocabulary, (B, T + 1), device=device)

            def run(model=model, optimizer=optimizer, data=data) -> Tensor:
                loss = model(data[:, :-1], data[:, 1:])
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                return loss.detach()

            shape = dict(width=width, ffn=hidden, heads=heads, layers=layers, vocabulary=vocabulary, batch=B, seq=T)
            yield {
                "name": name if backend == "plain" else f"emergence {name}",
                "shape": shape,
                "run": run,
                "tokens": B * T,
                "flops": flops_per_token(model, width, layers, T) * B * T,
            }
            del run, model, optimizer
