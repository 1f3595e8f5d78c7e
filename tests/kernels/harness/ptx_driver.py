"""A driver for Triton without a GPU: kernels go through the real compiler, and their PTX runs on CPU tensors.

install() must come before the first launch, in a process where TRITON_INTERPRET is unset. From then on `kernel[grid](...)`
specialises its arguments, compiles for the given architecture and launches as on a GPU; instead of machine code the PTX is
executed (ptx_executor.py). A launch may touch the elements of the tensors that it is given, and nothing else.
"""

import struct
from collections import Counter
from functools import partial
from types import SimpleNamespace

import ptx_executor
import ptx_reader
import torch

SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}  # of a block
PACK = {
    "i1": "<b",
    "i8": "<b",
    "i16": "<h",
    "i32": "<i",
    "i64": "<q",
    "u1": "<B",
    "u8": "<B",
    "u16": "<H",
    "u32": "<I",
    "u64": "<Q",
    "fp32": "<f",
    "fp64": "<d",
}
SWIZZLES = {0: 16, 1: 32, 2: 64, 3: 128}  # CUtensorMapSwizzle -> bytes of its span
launches = Counter()  # by kernel
replays: list | None = None  # where it is a list: each launch, to be made again


def extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Address and bytes from the first element to the last."""
    if not tensor.numel():
        return tensor.data_ptr(), 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return tensor.data_ptr(), (last + 1) * tensor.element_size()


def tensor_map(address, sizes, strides, box, element, swizzle) -> bytes:
    """Innermost first; sizes in elements, strides in bytes."""
    sizes, strides, box = ([*v] + [f] * (4 - len(v)) for v, f in ((sizes, 1), (strides, 0), (box, 1)))
    fields = struct.pack("<Q4q4q4iiI", address, *sizes, *strides, *box, element, swizzle)
    return ptx_executor.tensor_map(fields)


class Utils:
    """What Triton asks of the driver besides launches."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_device_properties(self, device):
        return {
            "max_shared_mem": SHARED_BYTES[self.arch],
            "multiprocessor_count": 2,
            "warpSize": 32,
            "max_num_regs": 65536,
            "sm_clock_rate": 1,
            "mem_clock_rate": 1,
            "mem_bus_width": 1,
        }

    def load_binary(self, name, binary, shared, device):
        return None, ptx_executor.Program(ptx_reader.read(binary.decode(), name)), 0, 0, 1024


class Launcher:
    def __init__(self, source, metadata):
        self.types = list(source.signature.values())
        self.metadata = metadata

    def _descriptor(self, descriptor, meta) -> list[bytes]:
        if meta is None:
            raise NotImplementedError("a descriptor that is no tensor map")
        element, base = meta["elem_size"], descriptor.base
        strides = [s * element for s in descriptor.strides]
        for stride in strides[:-1]:
            assert stride % 16 == 0 and base.data_ptr() % 16 == 0, (
                "a tensor map's strides and start are multiples of 16 bytes"
            )
        packed = tensor_map(
            base.data_ptr(),
            descriptor.shape[::-1],
            strides[::-1],
            meta["block_size"][::-1],
            element,
            SWIZZLES[meta["swizzle"]],
        )
        return [
            packed,
            *(struct.pack("<i", n) for n in descriptor.shape),
            *(struct.pack("<q", n) for n in descriptor.strides),
        ]

    def __call__(self, x, y, z, stream, program, packed, launch_metadata, enter, exit_, *arguments):
        values, ranges = [], []
        metas = iter(getattr(self.metadata, "tensordesc_meta", None) or [])
        if len(arguments) != len(self.types):
            raise NotImplementedError("arguments that are tuples")
        for kind, argument in zip(self.types, arguments):
            if kind == "constexpr":
                continue
            if kind.startswith("tensordesc"):
                values += self._descriptor(argument, next(metas, None))
                ranges.append(extent(argument.base))
            elif kind.startswith("*"):
                values.append(struct.pack("<Q", 0 if argument is None else argument.data_ptr()))
                if argument is not None:
                    ranges.append(extent(argument))
            else:
                values.append(struct.pack(PACK[kind], argument))
        assert self.metadata.global_scratch_size == 0 and self.metadata.num_ctas == 1
        launch = partial(
            program.launch,
            (x, y, z),
            (32 * self.metadata.num_warps, 1, 1),
            self.metadata.shared,
            values,
            ranges,
            tiles=True,
        )
        launches[program.kernel.name] += 1
        if replays is not None:
            replays.append((program.kernel, launch, arguments))  # which stay alive with it
        launch()


class Driver:
    def __init__(self, arch: int):
        self.arch, self.utils, self.launcher_cls = arch, Utils(arch), Launcher

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self):
        return 0

    def set_current_device(self, device):
        pass

    def get_current_stream(self, device=None):
        return 0

    def get_device_capability(self, device=None):
        return divmod(self.arch, 10)

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_device_interface(self):
        return SimpleNamespace(current_device=lambda: 0, synchronize=lambda: None)


def install(arch: int) -> None:
    """Triton compiles for `arch` (80 or 90) and runs on the CPU; our package takes backend "triton" and its entries for it."""
    import triton
    from triton.backends.nvidia.compiler import CUDABackend

    from emergence_kernels.backends import dispatch
    from emergence_kernels.backends import triton_configs as configs

    # The "binary" that is kept, cached and loaded is the PTX. The hash keeps it apart from real ones.
    CUDABackend.make_cubin = lambda self, source, *rest: source.encode()
    original_hash = CUDABackend.hash
    CUDABackend.hash = lambda self: f"ptx-{original_hash(self)}"
    triton.runtime.driver.set_active(Driver(arch))
    configs.architecture = lambda device: f"sm_{arch}"
    unsupported_reason = dispatch.unsupported_reason

    def patched(backend, op, device, limits):
        return limits.get(backend) if backend == "triton" else unsupported_reason(backend, op, device, limits)

    dispatch.unsupported_reason = patched
