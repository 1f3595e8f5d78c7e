"""Small PTX kernels for tests of the executor: a body, the registers it needs, and tensors as parameters."""

import struct

import ptx_executor
import torch

REGISTERS = (
    ".reg .pred %p<16>; .reg .b16 %rs<32>; .reg .b32 %r<64>; .reg .f32 %f<32>; .reg .f64 %fd<16>; .reg .b64 %rd<32>;"
)


def text(body: str, tensors: int, shared: int = 0) -> str:
    """%rd0, %rd1 ... are the tensors' addresses, %r0 the thread; `memory` is shared memory. Semicolons end statements."""
    parameters = ", ".join(f".param .u64 p{i}" for i in range(tensors))
    loads = " ".join(f"ld.param.b64 %rd{i}, [p{i}];" for i in range(tensors))
    memory = f".shared .align 1024 .b8 memory[{shared}];\n" if shared else ""
    return (
        f"{memory}.visible .entry snippet({parameters})\n{{ {REGISTERS} {loads} mov.u32 %r0, %tid.x;\n{body}\nret; }}"
    )


def run(body: str, *tensors: torch.Tensor, threads: int = 32, shared: int = 0, **options) -> None:
    program = ptx_executor.Program.of(text(body, len(tensors), shared))
    ranges = [(t.data_ptr(), t.numel() * t.element_size()) for t in tensors]
    values = [struct.pack("<Q", t.data_ptr()) for t in tensors]
    program.launch((1, 1, 1), (threads, 1, 1), 0, values, ranges, **options)


def map_lanes(instructions: str, *inputs: torch.Tensor, out: torch.dtype, registers: str) -> torch.Tensor:
    """Each thread has element tid of the inputs in `registers` ("f1 r2"), and gives the last register as element tid of the
    result."""
    width = {1: "b8", 2: "b16", 4: "b32", 8: "b64"}
    names = registers.split()
    result = torch.zeros(len(inputs[0]), dtype=out)
    lines = []
    for i, tensor in enumerate((*inputs, result)):
        lines.append(
            f"mul.wide.u32 %rd{20 + i}, %r0, {tensor.element_size()}; add.s64 %rd{20 + i}, %rd{20 + i}, %rd{i};"
        )
    for i, (name, tensor) in enumerate(zip(names, inputs)):
        lines.append(f"ld.global.{width[tensor.element_size()]} %{name}, [%rd{20 + i}];")
    lines += [instructions, f"st.global.{width[result.element_size()]} [%rd{20 + len(inputs)}], %{names[-1]};"]
    run("\n".join(lines), *inputs, result, threads=len(result))
    return result
