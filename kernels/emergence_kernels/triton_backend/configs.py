"""Tile shapes of every kernel, by architecture: built in, so that nothing is tuned while a job waits.

Chosen from registers, shared memory and spills read out of the compiled code (tests/kernels/test_compile.py compiles
every entry); none has been timed on a GPU yet. benchmarks/kernels.py compares them.
"""

from dataclasses import dataclass
from functools import cache

import torch

from ..dispatch import interpreting

ARCHITECTURES = {"sm_80": 80, "sm_90": 90}


@dataclass(frozen=True)
class Gemm:
    """A (m, n) tile of a matrix product, k at a time; `group` tiles of rows share the columns in the cache."""

    block_m: int
    block_n: int
    block_k: int
    group: int
    num_warps: int
    num_stages: int
    split: bool = False  # finish the tile in two halves, which spares registers
    descriptors: bool = False  # read operands by tensor descriptors (Hopper's TMA)


@dataclass(frozen=True)
class Attention:
    """`block_q` queries by `block_k` keys."""

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int
    descriptors: bool = False  # forward only: read keys and values by tensor descriptors (Hopper's TMA)


# Logits of the linear losses, by (architecture, bytes of an input element, softcapped).
LOGITS = {
    ("sm_80", 2, False): Gemm(128, 128, 32, 8, num_warps=8, num_stages=4),
    ("sm_80", 2, True): Gemm(128, 128, 32, 8, num_warps=8, num_stages=4),
    ("sm_90", 2, False): Gemm(128, 128, 64, 8, num_warps=8, num_stages=4),
    ("sm_90", 2, True): Gemm(128, 128, 64, 8, num_warps=8, num_stages=4),
} | {(arch, 4, softcap): Gemm(64, 64, 32, 8, 8, 3) for arch in ("sm_80", "sm_90") for softcap in (False, True)}
LOGITS |= {("interpreter", size, cap): Gemm(16, 64, 32, 2, 1, 1, split=cap) for size in (2, 4) for cap in (False, True)}

# Not chosen by "auto": candidates that a benchmark can put in the place of an entry above.
LOGITS_VARIANTS = {
    ("sm_90", 2, False): {
        "descriptors": Gemm(128, 128, 64, 8, num_warps=8, num_stages=4, descriptors=True),
        # One of its kernels spills a little (12 instructions).
        "wide descriptors": Gemm(128, 256, 64, 8, num_warps=8, num_stages=4, split=True, descriptors=True),
        # No spills with Triton 3.6; two instructions with 3.7.
        "wide": Gemm(128, 256, 64, 8, num_warps=8, num_stages=4, split=True),
    },
    ("sm_80", 2, False): {"deep": Gemm(128, 128, 64, 8, num_warps=8, num_stages=3)},
}

# Logits that exist at a time, in elements. 2^29 are 1 GiB of 16-bit values: rows enough to keep the matrix products
# efficient at a vocabulary of 131072, and few enough float32 accumulations of dW.
CHUNK_LOGITS = {"sm_80": 1 << 29, "sm_90": 1 << 29, "interpreter": 1 << 20}

# Attention, by (architecture, bytes of an element, head dim padded to a power of two). Windows, documents and lengths
# that the blocks do not divide put a mask on every block, which takes registers: "careful" entries are for them, where
# the plain one would spill.
ATTENTION = {
    ("sm_80", 2, 64): {
        "forward": Attention(128, 64, num_warps=4, num_stages=3),
        "forward careful": Attention(128, 64, num_warps=8, num_stages=3),
        "dkdv": Attention(64, 64, num_warps=4, num_stages=2),
        "dkdv careful": Attention(32, 128, num_warps=8, num_stages=2),
        "dq": Attention(64, 64, num_warps=4, num_stages=2),
        "dq careful": Attention(64, 64, num_warps=8, num_stages=2),
    },
    ("sm_80", 2, 128): {
        "forward": Attention(128, 64, num_warps=8, num_stages=3),
        "forward careful": Attention(128, 32, num_warps=8, num_stages=3),
        "dkdv": Attention(64, 64, num_warps=8, num_stages=2),
        "dkdv careful": Attention(32, 64, num_warps=8, num_stages=2),
        "dq": Attention(64, 64, num_warps=8, num_stages=2),
    },
    ("sm_90", 2, 64): {
        "forward": Attention(128, 128, num_warps=8, num_stages=3),
        "dkdv": Attention(64, 128, num_warps=8, num_stages=2),
        "dkdv careful": Attention(64, 64, num_warps=8, num_stages=2),
        "dq": Attention(128, 64, num_warps=8, num_stages=2),
    },
    ("sm_90", 2, 128): {
        "forward": Attention(128, 128, num_warps=8, num_stages=2),
        "forward careful": Attention(128, 64, num_warps=8, num_stages=3),
        "dkdv": Attention(64, 64, num_warps=8, num_stages=2),  # 64 x 128 spills with Triton 3.7, not with 3.6
        "dkdv careful": Attention(32, 64, num_warps=8, num_stages=2),
        "dq": Attention(128, 64, num_warps=8, num_stages=2),
    },
}
# Not chosen by "auto": as LOGITS_VARIANTS, for the forward kernel.
ATTENTION_VARIANTS = {
    ("sm_90", 2, 64): {
        "descriptors": Attention(128, 128, num_warps=8, num_stages=3, descriptors=True),
        "descriptors, small": Attention(128, 64, num_warps=4, num_stages=4, descriptors=True),
    },
    ("sm_90", 2, 128): {
        "descriptors": Attention(128, 128, num_warps=8, num_stages=2, descriptors=True),
        "descriptors, small": Attention(128, 64, num_warps=8, num_stages=3, descriptors=True),
    },
}

_PARTS = ("forward", "dkdv", "dq")
for _arch in ("sm_80", "sm_90"):
    for _head in (16, 32):  # small models: one modest tile
        ATTENTION[_arch, 2, _head] = dict.fromkeys(_PARTS, Attention(64, 64, 4, 2))
        ATTENTION[_arch, 2, _head] |= {
            "forward careful": Attention(64, 32, 4, 2),
            "dkdv careful": Attention(32, 64, 4, 2),
        }
    for _head in (16, 32, 64, 128):  # float32 without tensor cores: for checks, "auto" does not choose it
        ATTENTION[_arch, 4, _head] = dict.fromkeys(_PARTS, Attention(32, 32, 8, 2))
for _head in (16, 32, 64, 128):
    for _size in (2, 4):
        ATTENTION["interpreter", _size, _head] = {
            "forward": Attention(32, 16, 1, 1),
            "dkdv": Attention(16, 32, 1, 1),
            "dq": Attention(32, 16, 1, 1),
        }


def attention(arch: str, size: int, block_d: int, part: str, T: int, masked: bool) -> Attention:
    """The entry for one kernel ("forward", "dkdv", "dq") and a length T; masked: by a window or documents."""
    entries = ATTENTION[arch, size, block_d]
    plain = entries[part]
    if masked or T % plain.block_q or T % plain.block_k:
        return entries.get(f"{part} careful", plain)
    return plain


@cache
def _architecture_of(index: int) -> str:
    major, _ = torch.cuda.get_device_capability(index)
    return "sm_90" if major >= 9 else "sm_80"


def architecture(device: torch.device) -> str:
    """The table's name for a device. Newer architectures than sm_90 use its entries."""
    if device.type != "cuda":
        assert interpreting()
        return "interpreter"
    return _architecture_of(device.index if device.index is not None else torch.cuda.current_device())


def persistent_programs(device: torch.device, num_warps: int) -> int:
    """Programs that fill a device once, at about 16 warps a multiprocessor."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count * max(1, 16 // num_warps)
