"""What the race detector says to compiled code with a barrier, wait or fence left out: run as a script (TRITON_INTERPRET unset).

    python ptx_faults.py triton 80 loss        the statistics of the loss, on mma.sync and cp.async
    python ptx_faults.py triton 90 attention   attention's forward pass, on wgmma
    python ptx_faults.py nvcc 80 attention     csrc/cuda/attention/mma_forward.cu and mma_backward.cu
    python ptx_faults.py nvcc 90a hopper       csrc/cuda/attention/hopper_forward.cu and hopper_backward.cu

Prints a line of JSON for each instruction that orders threads: its kernel, its line, what it is, and the objection, or null.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator

import torch


def triton(arch: str, case: str) -> Iterator[tuple[object, Callable]]:
    """(kernel, what launches it)."""
    import ptx_driver

    import emergence_kernels as ek

    ptx_driver.install(int(arch))
    ptx_driver.replays = []
    if case == "loss":
        hidden, weight = torch.randn(1, 150, 144).bfloat16(), torch.randn(140, 144).bfloat16()
        ek.linear_cross_entropy(hidden, weight, torch.randint(140, (1, 150)), backend="triton")
        name = "_statistics_kernel"
    else:
        ek.attention(*(torch.randn(1, 300, 1, 64).bfloat16() for _ in range(3)), backend="triton")
        name = "_forward_kernel"
    for kernel, launch, _ in ptx_driver.replays:
        if kernel.name == name:
            yield kernel, launch


def nvcc(arch: str, case: str) -> Iterator[tuple[object, Callable]]:
    import ptx_of_nvcc

    from emergence_kernels.attention import hopper as attention_hopper
    from emergence_kernels.attention import mma as attention_mma
    from emergence_kernels.attention.options import Options, Saved
    from emergence_kernels.backends import build, library

    path = build.SOURCES.parent / "build" / "csrc" / "emulated.so"
    build.build("emulated", path)
    os.environ[library.VARIABLES["cuda"]] = str(path)
    assert library.unsupported_reason("cuda", torch.device("cpu")) is None
    elsewhere = ptx_of_nvcc.Elsewhere(path, arch)
    module, T = (attention_hopper, 530) if case == "hopper" else (attention_mma, 140)
    q, k, v, do = (torch.randn(1, T, 1, 64).bfloat16() for _ in range(4))
    out, lse = module.forward(q, k, v, Options())

    def backward() -> None:
        for deterministic in (False, True):
            module.backward(do, Saved(q, k, v, out, lse), Options(deterministic=deterministic))

    backward()
    for name, program in elsewhere.used.items():
        if ptx_of_nvcc.short(name).startswith("forward"):
            yield program.kernel, lambda: module.forward(q, k, v, Options())
        else:
            yield program.kernel, backward


def main(compiler: str, arch: str, case: str) -> None:
    torch.manual_seed(0)
    for kernel, launch in {"triton": triton, "nvcc": nvcc}[compiler](arch, case):
        for line, what in kernel.order.items():
            os.environ["EMERGENCE_EMULATE_DROP"] = line
            objection = None
            try:
                launch()
            except RuntimeError as error:
                objection = str(error)
            row = {"kernel": kernel.name, "line": line, "what": what, "objection": objection}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
