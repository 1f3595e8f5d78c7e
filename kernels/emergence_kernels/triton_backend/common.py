"""What every kernel's launcher needs."""

from contextlib import nullcontext

import torch
import triton.language as tl

from ..dispatch import interpreting

# The interpreter computes bfloat16 products wrongly in places: there every operand is widened to float32 first.
WIDEN = tl.constexpr(interpreting())


def on_device(tensor: torch.Tensor):
    """Launches go to the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def dot_precision(dtype: torch.dtype) -> str:
    """How tl.dot multiplies float32: as PyTorch's matrix products are set to."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "ieee"


def _mend_interpreter() -> None:
    """Triton's interpreter (3.6) reads scalars with int(array of one element), which NumPy 2.4 refuses."""
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


if interpreting():
    _mend_interpreter()
