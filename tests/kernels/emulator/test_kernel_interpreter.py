"""The quickened interpreter gives operands the types, shapes and values that Triton's own gives them."""

import itertools

import pytest
from compiled import COMPILED

pytest.importorskip("triton")
if COMPILED:
    pytest.skip("kernels are compiled here", allow_module_level=True)

import numpy as np  # noqa: E402
import quick_interpreter as quick  # noqa: E402
import triton.language as tl  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

TYPES = (tl.int1, tl.int8, tl.uint8, tl.int32, tl.uint32, tl.int64, tl.float16, tl.bfloat16, tl.float32, tl.float64)
NUMBERS = (0, 1, -3, 2**40, True, 0.0, -2.5, 1e-300, float("inf"))


def tensor_of(dtype, *shape):
    data = np.arange(int(np.prod(shape))).reshape(shape or (1,)).astype(interpreter._get_np_dtype(dtype))
    return tl.tensor(interpreter.TensorHandle(data, dtype), tl.block_type(dtype, list(shape)) if shape else dtype)


def outcome(check, lhs, rhs, division):
    """Types, shapes and values of both operands, or the class of the error."""
    semantic = interpreter.interpreter_semantic
    try:
        both = check(semantic, lhs, rhs, False, False, True, division)
    except Exception as error:
        return type(error)
    return [
        (
            t.dtype.name,
            str(t.type),
            [s.value for s in t.shape],
            t.numel.value,
            t.handle.data.dtype,
            t.handle.data.tolist(),
        )
        for t in both
    ]


@pytest.mark.parametrize("division", [False, True])
def test_operands_are_those_of_triton(division):
    shapes = [tensor_of(dtype, *shape) for dtype in TYPES for shape in ((), (4,), (1, 4), (2, 1))]
    quickened = type(interpreter.interpreter_semantic).binary_op_type_checking_impl
    assert quickened is not quick.PLAIN.check
    for lhs, rhs in [
        *itertools.product(shapes, shapes),
        *itertools.product(shapes, NUMBERS),
        *itertools.product(NUMBERS, shapes),
    ]:
        ours, theirs = (outcome(check, lhs, rhs, division) for check in (quickened, quick.PLAIN.check))
        assert ours == theirs, (lhs.type if isinstance(lhs, tl.tensor) else lhs, rhs)


@pytest.mark.parametrize("shape", [(1,), (16,), (2, 1, 8)], ids=str)
def test_types_and_tensors_are_those_of_triton(shape):
    handle = interpreter.TensorHandle(np.zeros(shape, np.float32), tl.float32)
    ours = tl.block_type(tl.float32, [tl.constexpr(size) for size in shape])
    assert (ours.numel, tuple(ours.shape.values), str(ours)) == (int(np.prod(shape)), shape, f"<{ours.shape}, fp32>")
    assert ours == tl.block_type(tl.float32, list(shape)) and ours != tl.block_type(tl.float16, list(shape))
    plain = object.__new__(tl.tensor)
    quick.PLAIN.tensor(plain, handle, ours)
    tensor = tl.tensor(handle, ours)
    for name in ("numel", "dtype", "type", "handle"):
        assert getattr(tensor, name) == getattr(plain, name), name
    assert [s.value for s in tensor.shape] == [s.value for s in plain.shape] and str(tensor.shape) == str(plain.shape)


@pytest.mark.parametrize(
    "shape, error", [([], TypeError), ([3], ValueError), ([1.0], TypeError), ([1 << 21], ValueError)]
)
def test_shapes_that_triton_refuses(shape, error):
    with pytest.raises(error):
        tl.block_type(tl.float32, shape)
