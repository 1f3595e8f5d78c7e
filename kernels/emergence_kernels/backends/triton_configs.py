"""Tile shapes of every kernel by architecture: a table instead of autotuning at the start of a job.

Chosen from registers, shared memory and spills read out of the compiled code (tests/kernels/backends/test_kernel_compile.py
compiles every entry). benchmarks/kernels.py times them.
"""

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from .dispatch import interpreting
from .logit_chunks import CHUNK_BYTES as CHUNK_BYTES
from .logit_chunks import CHUNK_MULTIPLE as CHUNK_MULTIPLE
from .logit_chunks import table_of as table_of

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

    def launch(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


@dataclass(frozen=True)
class LossRows:
    """A program's threads, and the columns of its row of logits that each holds at a time, in vectors of 16 bytes."""

    threads: int
    columns: int

    @property
    def num_warps(self) -> int:
        return max(1, self.threads // 32)


@dataclass(frozen=True)
class Attention:
    """`block_q` queries by `block_k` keys."""

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int


# The linear losses where nothing but statistics is wanted, by (architecture, bytes of an input element, softcapped).
LOGITS = {
    ("sm_80", 2, False): Gemm(128, 128, 32, 8, num_warps=8, num_stages=4),
    ("sm_80", 2, True): Gemm(128, 128, 32, 8, num_warps=8, num_stages=4),
    # 11% faster in evaluation than two tiles of 128 x 128 a multiprocessor (H100, 8,192 x 2,048 x 50,304)
    ("sm_90", 2, False): Gemm(128, 256, 64, 8, num_warps=8, num_stages=4, split=True, descriptors=True),
    ("sm_90", 2, True): Gemm(128, 128, 64, 8, num_warps=8, num_stages=4),
} | {(arch, 4, softcap): Gemm(64, 64, 32, 8, 8, 3) for arch in ("sm_80", "sm_90") for softcap in (False, True)}
LOGITS |= {("interpreter", size, cap): Gemm(16, 64, 32, 2, 1, 1, split=cap) for size in (2, 4) for cap in (False, True)}

# In the place of an entry with descriptors, for operands whose rows do not start at multiples of 16 bytes.
LOGITS_BY_POINTERS = {
    ("sm_90", 2, False): Gemm(128, 128, 64, 8, num_warps=8, num_stages=4),
    ("sm_90", 2, True): Gemm(128, 128, 64, 8, num_warps=8, num_stages=4),
}

# Logits of a chunk where they are not stored: their partial sums and packed rows take a hundredth of as many bytes.
CHUNK_LOGITS = {"sm_80": 1 << 29, "sm_90": 1 << 29, "interpreter": 1 << 20}

# Of the logits of a chunk (logit_chunks.py), for bfloat16 inputs (float16 and float32 always have float32 logits). float32
# moves 14 bytes a logit: 4 written, 4 read (or 8, where the L2 cache lost them), 2 written for the gradient, which dX and dW
# read. bfloat16 moves 10, and rounds z: by up to 2^-9 of it, so that at z = 20 p is wrong by up to 4%, and ties make top-1
# too kind.
LOGITS_DTYPE = {"sm_80": torch.float32, "sm_90": torch.float32, "interpreter": torch.float32}

# Two programs of 1024 threads (32 registers each) fill a multiprocessor: the rows of all, 200 KB each at 50304 words, are about
# as large as the L2 cache, from which they are read again. Four of 512 threads overlap better, and lose the cache.
LOSS_ROWS = {"sm_80": LossRows(1024, 8), "sm_90": LossRows(1024, 8), "interpreter": LossRows(8, 8)}

# Attention, by (architecture, bytes of an element, head dim padded to a power of two). Windows, documents and lengths
# that the blocks do not divide put a mask on every block, which takes registers: "careful" entries are for them, where
# the plain one would spill.
#
# Hopper's dkdv may spill some bytes (test_kernel_compile.py says how many): with tiles that do not, wgmma multiplies 32 or 16
# columns at a time, and shared memory brings it operands at 67 or 40% of the tensor cores' rate; from 64 on it keeps up. Computed
# and compiled, not measured: those tiles reached 160 to 237 TFLOP/s at head dim 128 on an H100, these have not been timed.
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
        "dq": Attention(128, 64, num_warps=8, num_stages=2),
    },
    ("sm_90", 2, 128): {
        "forward": Attention(128, 128, num_warps=8, num_stages=2),
        "forward careful": Attention(128, 64, num_warps=8, num_stages=3),
        "dkdv": Attention(64, 128, num_warps=8, num_stages=2),
        "dkdv careful": Attention(64, 128, num_warps=8, num_stages=1),
        "dq": Attention(128, 64, num_warps=8, num_stages=2),
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


def logits_dtype(arch: str, dtype: torch.dtype) -> torch.dtype:
    return LOGITS_DTYPE[arch] if dtype == torch.bfloat16 else torch.float32


def loss_rows(arch: str, V: int) -> LossRows:
    """The table's entry, with no more threads than a short row keeps busy."""
    entry = LOSS_ROWS[arch]
    while entry.threads > 128 and entry.threads // 2 * entry.columns >= V:
        entry = replace(entry, threads=entry.threads // 2)
    return entry


def logits(arch: str, softcapped: bool, hidden_ND: Tensor, weight_VD: Tensor) -> Gemm:
    key = arch, hidden_ND.element_size(), softcapped
    entry = LOGITS[key]
    return LOGITS_BY_POINTERS.get(key, entry) if entry.descriptors and not _described(hidden_ND, weight_VD) else entry


def _described(hidden_ND: Tensor, weight_VD: Tensor) -> bool:
    """Whether tensor descriptors can take rows of both: those of hidden are packed first."""
    size = weight_VD.element_size()
    starts = (hidden_ND.shape[1] * size, weight_VD.stride(0) * size, weight_VD.data_ptr())
    return weight_VD.stride(1) == 1 and not any(start % 16 for start in starts)


@cache
def _architecture_of(index: int) -> str:
    return table_of(torch.cuda.get_device_capability(index)[0])


def architecture(device: torch.device) -> str:
    """The table's name for a device."""
    if device.type != "cuda":
        assert interpreting()
        return "interpreter"
    return _architecture_of(device.index if device.index is not None else torch.cuda.current_device())


def persistent_programs(device: torch.device, num_warps: int) -> int:
    """Programs that fill a device once, at about 16 warps a multiprocessor."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count * max(1, 16 // num_warps)
