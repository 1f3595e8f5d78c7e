"""Compiles Triton kernels for a GPU that is not here, and reads the machine code.

Run as a script (with TRITON_INTERPRET unset) it compiles every configuration that "auto" can choose and prints one line
of JSON per kernel; test_compile.py runs it so and looks at the lines.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ALIGNED = [["tt.divisibility", 16]]


def compile_kernel(kernel, types: dict, constants: dict, arch: int, **launch: int):
    """types: argument -> Triton type, ending in ":16" where the launcher would find a multiple of 16."""
    signature = {name: types[name].removesuffix(":16") for name in types} | {name: "constexpr" for name in constants}
    signature = {name: signature[name] for name in kernel.arg_names}
    attributes = {
        (index,): ALIGNED for index, name in enumerate(kernel.arg_names) if types.get(name, "").endswith(":16")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=dict(constants), attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch)


def inspect(compiled) -> dict:
    """Registers, spilled bytes, shared memory and counts of matrix instructions."""
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run(
                [str(tools / "cuobjdump"), option, file.name], capture_output=True, text=True, check=True
            ).stdout
            for option in ("-res-usage", "-sass")
        )
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", code)),
        "shared": compiled.metadata.shared,
        "loads": Counter(re.findall(r"\bLDG\.E(?:\.(?:[A-Z0-9_]+))*", code)),
        "stores": Counter(re.findall(r"\bSTG\.E(?:\.(?:[A-Z0-9_]+))*", code)),
        "matrix": len(re.findall(r"\b(?:HMMA|HGMMA)\b", code)),
        "wgmma": len(re.findall(r"\bHGMMA\b", code)),
        "columns": sorted({int(n) for n in re.findall(r"wgmma\.mma_async\S*\.m64n(\d+)k", compiled.asm["ptx"])}),
        "global": sorted(set(re.findall(r"\b((?:LDG|STG)\.E[.\w]*)", code))),
    }


POINTER = {"bfloat16": "*bf16:16", "float16": "*fp16:16", "float32": "*fp32:16"}
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def cross_entropy(dtype: str, arch: str, even: bool = True):
    """even: features that the block divides; not even: of which descriptors cannot take every number."""
    from emergence_kernels.backends import triton_configs as configs
    from emergence_kernels.cross_entropy import triton as module
    from emergence_kernels.cross_entropy import triton_scale as scale_module

    x = POINTER[dtype]
    types = {name: "*fp32:16" for name in ("max_ptr", "sum_ptr", "dot_ptr", "z_target_ptr")}
    types |= {name: "*fp32:16" for name in ("loss_ptr", "entropy_ptr", "top_ptr", "log_total_ptr")}
    types |= {name: "*i64:16" for name in ("target_ptr", "count_ptr", "order_ptr")} | {"correct_ptr": "*i1:16"}
    types |= {name: x for name in ("x_ptr", "w_ptr")}
    types |= {name: "i32:16" for name in ("stride_x", "stride_wv", "R", "D", "start")}
    types |= {"V": "i32", "tiles_v": "i32", "strips": "i32", "softcap": "fp32"}
    small = dict(num_warps=4, num_stages=3)
    for softcap in (False, True):
        key = arch, BYTES[dtype], softcap
        config = configs.LOGITS[key]
        if config.descriptors and not even:
            config = configs.LOGITS_BY_POINTERS[key]
        constants = dict(
            BLOCK_M=config.block_m,
            BLOCK_V=config.block_n,
            BLOCK_D=config.block_k,
            GROUP=config.group,
            SPLIT=config.split,
            EVEN_D=even,
            PRECISION="ieee",
            stride_wd=1,
            DESCRIPTORS=config.descriptors,
            SOFTCAP=softcap,
        )
        tiles = {}
        if config.descriptors:
            tiles = {"x_ptr": config.block_m, "w_ptr": config.block_n}
            tiles = {k: f"tensordesc<{x[1:].split(':')[0]}[{m}, {config.block_k}]>" for k, m in tiles.items()}
        yield f"statistics softcap={softcap}", module._statistics_kernel, types | tiles, constants, config.launch()
    for entropy in (False, True):
        constants = dict(ROWS=4, BLOCK=128, ENTROPY=entropy)
        yield f"combine entropy={entropy}", module._combine_kernel, types, constants, small
    scale = {"y_ptr": x, "factor_ptr": "*fp32:16", "size": "i32:16"}
    for of_x in {x, POINTER["float32"]}:
        constants = dict(BLOCK=scale_module.BLOCK, IN_PLACE=of_x == x)
        yield f"scale {of_x}", scale_module._scale_kernel, scale | {"x_ptr": of_x}, constants, small


def loss_rows(dtype: str, arch: str):
    from emergence_kernels.backends import triton_configs as configs
    from emergence_kernels.cross_entropy import triton_loss_rows as module

    names = ("scale_ptr", "loss_ptr", "lse_ptr", "entropy_ptr")
    types = {name: "*fp32:16" for name in names}
    types |= {"target_ptr": "*i64:16", "valid_ptr": "*i1:16", "correct_ptr": "*i1:16", "dz_ptr": POINTER[dtype]}
    types |= {name: "i32:16" for name in ("stride_z", "stride_dz", "S")}
    types |= {"V": "i32", "softcap": "fp32", "z_loss": "fp32"}
    for logits in dict.fromkeys(("float32", *([dtype] if dtype == "bfloat16" else []))):
        vector = 16 // BYTES[logits]
        for V in (1000, 50257):
            entry = configs.loss_rows(arch, V)
            tile = dict(THREADS=entry.threads, UNROLL=entry.columns // vector, VECTOR=vector)
            for results, softcap in ((True, False), (False, False), (False, True)):
                constants = tile | dict(RESULTS=results, SOFTCAP=softcap)
                name = f"loss_rows {logits} V={V} results={results} softcap={softcap}"
                launch = dict(num_warps=entry.num_warps, num_stages=1)
                yield name, module._loss_rows_kernel, types | {"z_ptr": POINTER[logits]}, constants, launch


def cross_entropy_uneven(dtype: str, arch: str):
    """Features that no block divides."""
    yield from cross_entropy(dtype, arch, even=False)


def rms_norm(dtype: str, arch: str):
    from emergence_kernels.rms_norm import triton as module

    types = {"rstd_ptr": "*fp32:16", "dw_ptr": "*fp32:16", "N": "i32", "D": "i32:16", "eps": "fp32"}
    types |= {name: "i32:16" for name in ("stride_x", "stride_residual", "stride_dy", "stride_d_residual")}
    for D in (1024, 4096, 8192):
        ahead = dict(AHEAD=module.reads_residual_ahead(getattr(torch, dtype)))
        for kernel, tile, more in (
            (module._forward_kernel, module.tile, {}),
            (module._backward_kernel, module.backward_tile, ahead),
        ):
            rows, block, warps = tile(D)
            for residual in (False, True):
                constants = dict(ROWS=rows, BLOCK_D=block, RESIDUAL=residual)
                named = {name: POINTER[dtype] for name in kernel.arg_names if name.endswith("_ptr")} | types
                name = f"{kernel.__name__} D={D} residual={residual}"
                yield name, kernel, named, constants | more, dict(num_warps=warps, num_stages=3)
    named = {"shares_ptr": "*fp32:16", "dw_ptr": POINTER[dtype], "P": "i32", "D": "i32:16"}
    yield "_sum_shares_kernel", module._sum_shares_kernel, named, dict(BLOCK_P=1024, BLOCK_D=8), dict(num_warps=4)


def attention(dtype: str, arch: str, group: int = 1, even: bool = True, scores: bool = False):
    """scores: with a softcap, sinks and ALiBi."""
    from emergence_kernels.attention import triton as module
    from emergence_kernels.attention.triton_scores import BIASES
    from emergence_kernels.backends import triton_configs as configs

    kernels = {"forward": module._forward_kernel, "dkdv": module._dkdv_kernel, "dq": module._dq_kernel}
    types = {"lse_ptr": "*fp32:16", "delta_ptr": "*fp32:16", "ids_ptr": "*i64:16", "range_ptr": "*i32:16"}
    types |= {"T": "i32:16", "H": "i32", "window": "i32", "scale": "fp32", "scale2": "fp32", "cap2": "fp32"}
    of_scores = {"SOFTCAP": scores, "BIAS": BIASES["alibi"] if scores else None}
    of_scores |= {} if scores else {"sink_ptr": None, "bias_ptr": None}
    types |= {"sink_ptr": "*fp32:16", "bias_ptr": "*fp32:16"} if scores else {}
    cases = {
        "causal": (True, False, False),
        "full": (False, False, False),
        "causal+window": (True, True, False),
        "causal+documents": (True, False, True),
    }
    for D in (32, 64, 80, 96, 128) if BYTES[dtype] == 2 else (64, 128):
        block_d = 1 << (D - 1).bit_length()
        delta = {name: "i32:16" for name in module._delta_kernel.arg_names if name.startswith("stride_")} | types
        delta |= {"o_ptr": POINTER[dtype], "do_ptr": POINTER[dtype]}
        constants = dict(D=D, BLOCK_D=block_d, BLOCK_Q=64)
        yield f"delta D={D} any", module._delta_kernel, delta, constants, dict(num_warps=4, num_stages=3)
        for part, kernel in kernels.items():
            for case, (causal, window, documents) in cases.items():
                T = 4096 if even else 1000
                config = configs.attention(arch, BYTES[dtype], block_d, part, T, window or documents or scores)
                constants = dict(
                    GROUP=group,
                    D=D,
                    BLOCK_D=block_d,
                    BLOCK_Q=config.block_q,
                    BLOCK_K=config.block_k,
                    EVEN_T=even,
                    PRECISION="ieee",
                    CAUSAL=causal,
                    WINDOW=window,
                    DOCUMENTS=documents,
                ) | {name: value for name, value in of_scores.items() if name in kernel.arg_names}
                named = {name: POINTER[dtype] for name in kernel.arg_names if name.endswith("_ptr")}
                named |= {name: "i32:16" for name in kernel.arg_names if name.startswith("stride_")}
                launch = dict(num_warps=config.num_warps, num_stages=config.num_stages)
                yield f"{part} D={D} {case}", kernel, named | types, constants, launch


def attention_common(dtype: str, arch: str):
    """The two head dims and the two masks that training meets most."""
    for case in attention(dtype, arch):
        if case[0].split()[1] in ("D=64", "D=128") and case[0].split()[2] in ("causal", "causal+documents"):
            yield case


def attention_scores(dtype: str, arch: str):
    """attention_common with a softcap, sinks and ALiBi."""
    for case in attention(dtype, arch, scores=True):
        if case[0].split()[1] in ("D=64", "D=128") and case[0].split()[2] in ("causal", "causal+documents"):
            yield case


def attention_uneven(dtype: str, arch: str):
    """Grouped queries, and lengths that no block divides."""
    yield from attention(dtype, arch, group=4, even=False)


def rotary(dtype: str, arch: str):
    from emergence_kernels.rotary import triton as module

    types = {"cos_ptr": "*fp32:16", "sin_ptr": "*fp32:16", "T": "i32:16", "H": "i32", "G": "i32", "sign": "fp32"}
    for D, R in ((64, 32), (128, 64), (128, 32)):
        for kernel in (module._rotary_kernel, module._join_kernel):
            named = {name: POINTER[dtype] for name in kernel.arg_names if name.endswith("_ptr")} | types
            named |= {name: "i32:16" for name in kernel.arg_names if name.startswith("stride_")}
            tile = module._tile(D, R, 16)
            launch = dict(num_warps=tile.pop("num_warps"), num_stages=3)
            for in_place in (False, True) if kernel is module._rotary_kernel else (None,):
                constants = tile if in_place is None else tile | dict(IN_PLACE=in_place)
                yield f"{kernel.__name__} D={D} R={R} in_place={in_place}", kernel, named, constants, launch


def swiglu(dtype: str, arch: str):
    from emergence_kernels.swiglu import triton as module

    types = {"N": "i32", "F": "i32:16", "stride_x": "i32:16", "stride_dy": "i32:16"}
    for F in (2752, 128, 16):  # a row for several programs; several rows a program
        rows, block = module.tile(F)
        for kernel in (module._swiglu_kernel, module._swiglu_backward_kernel):
            named = {name: POINTER[dtype] for name in kernel.arg_names if name.endswith("_ptr")} | types
            yield (
                f"{kernel.__name__} F={F}",
                kernel,
                named,
                dict(ROWS=rows, BLOCK=block),
                dict(num_warps=4, num_stages=3),
            )


def adamw(dtype: str, arch: str):
    from emergence_kernels.adamw import triton as module

    types = {name: "*fp32:16" for name in module._adamw_kernel.arg_names if name.endswith("_ptr")}
    types |= {"copy_ptr": POINTER[dtype], "applied_ptr": "*i1:16", "N": "i32:16", "lr": "fp32"}
    constants = dict(BETA1=0.9, BETA2=0.95, EPS=1e-8, DECAY=0.1, COPY=True, BLOCK=module.BLOCK)
    yield "update", module._adamw_kernel, types, constants, dict(num_warps=module.WARPS, num_stages=3)


def fp8_linear(dtype: str, arch: str):
    """Rows of the widths that a 1.2B model has, one wider than registers hold, and a weight's columns; Hopper's alone."""
    from emergence_kernels.fp8_linear import triton as module

    if arch == "sm_80":
        return
    x, values = POINTER[dtype], {"q_ptr": "*fp8e4nv:16", "scale_ptr": "*fp32:16"}
    for K in (2048, 5632, 11264, 16384, 28672):
        block, warps = module.tile(K)
        types = values | {"x_ptr": x, "stride_x": "i32:16", "K": "i32:16"}
        constants = dict(BLOCK=block, WHOLE=block >= K)
        yield f"rows K={K}", module._fp8_rows_kernel, types, constants, dict(num_warps=warps, num_stages=3)
    types = values | {"w_ptr": x, "amax_ptr": x, "stride_w": "i32:16", "N": "i32:16", "K": "i32:16"}
    constants = dict(zip(("BLOCK_N", "BLOCK_K"), module.TILE))
    yield "columns any", module._fp8_columns_kernel, types, constants, dict(num_warps=4, num_stages=3)


SUITES = {
    "cross_entropy": cross_entropy,
    "rms_norm": rms_norm,
    "rotary": rotary,
    "swiglu": swiglu,
    "fp8_linear": fp8_linear,
    "adamw": adamw,
    "attention": attention,
    "attention_common": attention_common,
    "attention_scores": attention_scores,
    "attention_uneven": attention_uneven,
    "cross_entropy_uneven": cross_entropy_uneven,
    "loss_rows": loss_rows,
}


def main(suite: str, *choices: str) -> None:
    """choices: dtypes, compute capabilities (90 for 9.0) and further suites."""
    from emergence_kernels.backends import triton_configs as configs

    suites = [suite, *(choice for choice in choices if choice in SUITES)]
    dtypes = [choice for choice in choices if choice in POINTER]
    for number in [int(choice) for choice in choices if choice.isdigit()] or (80, 90):
        arch = configs.table_of(number // 10)
        for suite, dtype in itertools.product(suites, dtypes or POINTER):
            for name, kernel, types, constants, launch in SUITES[suite](dtype, arch):
                needed = {k: v for k, v in types.items() if k in kernel.arg_names and k not in constants}
                compiled = compile_kernel(kernel, needed, constants, number, **launch)
                row = dict(suite=suite, arch=arch, target=number, dtype=dtype, kernel=name) | inspect(compiled)
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
