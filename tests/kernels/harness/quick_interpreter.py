"""Triton's interpreter in a fraction of its time, by leaving out what changes no result.

NumPy is a tenth of it. It patches triton.language at each call of a device function; once a process is enough. It computes in
int64 whether integers overflow, and looks at the answer in debug mode only. It makes its table of NumPy types at each use, and
checks and describes a shape for each tensor anew. It looks for a common type and shape where operands have the same ones, or
where one of them is a number. test_kernel_interpreter.py compares the two.
"""

import dataclasses
import math
from functools import cache, lru_cache
from types import SimpleNamespace

import numpy as np
import triton.language as tl
from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

PLAIN = SimpleNamespace(  # Triton's own
    tensor=core.tensor.__init__,
    check=TritonSemantic.binary_op_type_checking_impl,
    broadcast=TritonSemantic.broadcast_impl_value,
)
WIDE = ("fp32", "fp64")


def install() -> None:
    patch_once_a_process()
    look_up_numpy_types()
    describe_shapes_once()
    skip_what_is_equal()
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def patch_once_a_process() -> None:
    patch, patched = interpreter._patch_lang, set()

    @cache
    def patch_once(function) -> interpreter._LangPatchScope:
        seen = {value.__name__ for value in function.__globals__.values() if value is tl or value is tl.core}
        if not seen <= patched:
            patch(function)
            patched.update(seen)
        return interpreter._LangPatchScope()  # restores nothing

    interpreter._patch_lang = patch_once


def look_up_numpy_types() -> None:
    numpy_type, known = interpreter._get_np_dtype, {}

    def known_numpy_type(type):
        name = type.scalar.name
        if name not in known:
            known[name] = numpy_type(type)
        return known[name]

    interpreter._get_np_dtype = known_numpy_type


@lru_cache(maxsize=None, typed=True)
def _shape(*sizes: int) -> SimpleNamespace:
    """What Triton's types and tensors of a shape have in common."""
    if not sizes:
        return SimpleNamespace(of_tensor=core.tuple([]), tensor_numel=core.constexpr(1))
    return SimpleNamespace(
        sizes=sizes,
        of_type=core.tuple(core._unwrap_shape(list(sizes))),
        numel=core.validate_block_shape(sizes),
        of_tensor=core.tuple([core.constexpr(size) for size in sizes]),
        tensor_numel=core.constexpr(math.prod(sizes)),
    )


def describe_shapes_once() -> None:
    def block_type(self, element_ty, shape) -> None:
        self.element_ty = element_ty
        self.common = _shape(*[size.value if type(size) is core.constexpr else size for size in shape])
        if not len(shape):
            raise TypeError("0d block_type is forbidden")
        self.shape, self.numel = self.common.of_type, self.common.numel

    def tensor(self, handle, type) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        common = type.common if type.is_block() else _shape()
        self.shape, self.numel = common.of_tensor, common.tensor_numel

    def splat(self, ret_ty, arg):
        value = arg.data[0] if isinstance(arg.dtype, tl.block_type) else arg.data
        full = np.full(ret_ty.common.sizes, value, dtype=interpreter._get_np_dtype(arg.dtype))
        return interpreter.TensorHandle(full, arg.dtype.scalar)

    core.block_type.__init__ = block_type
    core.block_type.name = property(lambda self: f"<{self.shape}, {self.element_ty}>")
    core.tensor.__init__ = tensor
    interpreter.InterpreterBuilder.create_splat = splat


def skip_what_is_equal() -> None:
    def check(self, lhs, rhs, *options, **named):
        """Two integers of a type have it in common, two wide floats, and a wide float and a number."""
        left, right = (getattr(operand, "dtype", None) for operand in (lhs, rhs))
        if left is not None and left is right:
            common = left.name in WIDE or left.is_int()
        elif common := left is not None and left.name in WIDE and type(rhs) in (int, float):
            rhs = self.scalar_constant(rhs, left)
        elif common := right is not None and right.name in WIDE and type(lhs) in (int, float):
            lhs = self.scalar_constant(lhs, right)
        return self.broadcast_impl_value(lhs, rhs) if common else PLAIN.check(self, lhs, rhs, *options, **named)

    def broadcast(self, lhs, rhs):
        return (lhs, rhs) if lhs.shape is rhs.shape else PLAIN.broadcast(self, lhs, rhs)

    TritonSemantic.binary_op_type_checking_impl = check
    TritonSemantic.broadcast_impl_value = broadcast
