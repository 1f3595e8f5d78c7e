"""How many rows of logits of a linear head exist at a time. Without torch: plans of memory read this file by itself."""

PACK = 16  # columns; whole vectors of 16 bytes in every dtype, and a divisor that Triton specialises on

# Where gradients are wanted: bytes of logits that exist at a time. Each further chunk reads and writes the float32 sum of
# dW, 8 bytes a weight: 2 GiB hold 8192 tokens by 50304 words in float32, and Hopper has 80 GB or more.
CHUNK_BYTES = {"sm_80": 1 << 30, "sm_90": 1 << 31, "interpreter": 1 << 22}
CHUNK_MULTIPLE = 128  # rows; whole tiles of the matrix products


def table_of(major: int) -> str:
    """The table for a compute capability. The entries of sm_90 take up to 227 KB of shared memory, which 9.x to 11.x have; 12.x
    (RTX 50, RTX PRO 6000) has 99 KB, as 8.6 and 8.9, and takes those of sm_80."""
    return "sm_90" if 9 <= major < 12 else "sm_80"


def equal_rows(rows: int, most: int, multiple: int) -> int:
    """Rows of a chunk: as few chunks as `most` allows, alike up to rounding to `multiple`."""
    most = max(multiple, most // multiple * multiple)
    each = -(-rows // max(1, -(-rows // most)))
    return max(1, min(rows, -(-each // multiple) * multiple))


def padded(V: int) -> int:
    return -(-V // PACK) * PACK
