"""What another compiler makes of attention's two products on Hopper: run as a script (TRITON_INTERPRET unset), prints PTX.

test_kernel_nvcc.py compares instructions and matrix descriptors with those of csrc/common/hopper.h and wgmma.h.
"""

import sys
from pathlib import Path

import triton
import triton.language as tl

sys.path.insert(0, str(Path(__file__).parent))


@triton.jit
def _two_products(q_ptr, k_ptr, v_ptr, out_ptr, T, D: tl.constexpr, ROWS: tl.constexpr):
    q = tl.reshape(q_ptr.load([0, 0, 0, 0]), (ROWS, D))
    out = tl.zeros((ROWS, D), tl.float32)
    for start in range(0, T, ROWS):
        k = tl.reshape(k_ptr.load([0, start, 0, 0]), (ROWS, D))
        s = tl.dot(q, k.T)
        v = tl.reshape(v_ptr.load([0, start, 0, 0]), (ROWS, D))
        out = tl.dot(s.to(tl.bfloat16), v, out)
    tl.store(out_ptr + tl.arange(0, ROWS)[:, None] * D + tl.arange(0, D)[None, :], out)


if __name__ == "__main__":
    from compiling import compile_kernel

    types = {name: "tensordesc<bf16[1, 128, 1, 128]>" for name in ("q_ptr", "k_ptr", "v_ptr")}
    types |= {"out_ptr": "*fp32:16", "T": "i32:16"}
    constants = dict(D=128, ROWS=128)
    print(compile_kernel(_two_products, types, constants, 90, num_warps=4, num_stages=2).asm["ptx"])
