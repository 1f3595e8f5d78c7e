"""The peers of gpu_training.py: the decoder in PyTorch's own operations, and transformers' Llama with Liger's kernels."""

import torch
import torch.nn.functional as F
from torch import nn


class PlainBlock(nn.Module):
    """A textbook block in PyTorch's own operations, with fused projections."""

    def __init__(self, c) -> None:
        super().__init__()
        self.c = c
        self.n1, self.n2 = nn.RMSNorm(c.width, eps=c.norm_eps), nn.RMSNorm(c.width, eps=c.norm_eps)
        self.qkv = nn.Linear(c.width, (c.heads + 2 * c.kv_heads) * c.head_dim, bias=False)
        self.o, self.down = nn.Linear(c.width, c.width, bias=False), nn.Linear(c.ffn, c.width, bias=False)
        self.gate_up = nn.Linear(c.width, 2 * c.ffn, bias=False)

    def forward(self, x, cos, sin):
        (B, T, _), c = x.shape, self.c
        heads = self.qkv(self.n1(x)).view(B, T, -1, c.head_dim).transpose(1, 2)
        q, k, v = heads.split([c.heads, c.kv_heads, c.kv_heads], dim=1)
        q, k = (self.turn(t, cos, sin) for t in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=c.heads != c.kv_heads)
        x = x + self.o(y.transpose(1, 2).reshape(B, T, -1))
        gate, up = self.gate_up(self.n2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)

    @staticmethod
    def turn(x_BHTd, cos, sin):
        a, b = x_BHTd.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x_BHTd.dtype)  # the table stays float32


class PlainDecoder(nn.Module):
    """Blocks, and a loss from the logits."""

    def __init__(self, c) -> None:
        super().__init__()
        self.embedding = nn.Embedding(c.vocab_size, c.width)
        self.blocks = nn.ModuleList(PlainBlock(c) for _ in range(c.layers))
        self.norm = nn.RMSNorm(c.width, eps=c.norm_eps)
        self.head = nn.Linear(c.width, c.vocab_size, bias=False)
        half = c.head_dim // 2
        angles = torch.arange(c.max_sequence)[:, None] * c.rotary_base ** (-torch.arange(half) / half)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]])
        return self.loss(x, targets)

    def loss(self, x, targets):
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1).float(), targets.flatten())

    def compile_parts(self) -> None:
        """Block by block, as torchtitan does: compiled once for all of them; and the loss, fused with the projection."""
        for block in self.blocks:
            block.compile(dynamic=False)
        self.loss = torch.compile(self.loss, dynamic=False)


class LigerLlama(nn.Module):
    """transformers' Llama with every kernel that Liger has for it."""

    def __init__(self, c) -> None:
        super().__init__()
        import transformers
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        from emergence_train.convert.hf_names import hf_config

        apply_liger_kernel_to_llama(rope=True, rms_norm=True, swiglu=True, fused_linear_cross_entropy=True)
        config = transformers.LlamaConfig.from_dict(hf_config(c), attn_implementation="sdpa", use_cache=False)
        self.llama = transformers.LlamaForCausalLM(config)

    def forward(self, tokens, targets):
        return self.llama(input_ids=tokens, labels=targets, shift_labels=targets).loss
