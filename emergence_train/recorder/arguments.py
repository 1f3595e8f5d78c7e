"""What a caller gives a Recorder: numbers of Python, numpy and torch as Python's own, or an InputError that names them."""

import contextlib
import math
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emergence_train.errors import InputError

MOST = 2**63  # int64 columns
Array = Tensor | np.ndarray


def whole(call: str, name: str, value: Any, *, least: int = 0) -> int:
    """A whole number from `least` on, below 2^63."""
    number = _number(value)
    if number is None or not least <= number < MOST or number != int(number):
        raise _refusal(call, name, value, f"a whole number from {least} on")
    return int(number)


def real(call: str, name: str, value: Any, *, least: float = -math.inf, finite: bool = True) -> float:
    """A number from `least` on; NaN and the infinities only where it need not be `finite`."""
    number = _number(value)
    with contextlib.suppress(OverflowError):
        number = None if number is None else float(number)
    if not isinstance(number, float) or number < least or (finite and not math.isfinite(number)):
        bound = "" if least == -math.inf else f" from {least:g} on"
        raise _refusal(call, name, value, f"a {'finite ' if finite else ''}number{bound}")
    return number


def text(call: str, name: str, value: Any, *, empty: bool = False) -> str:
    """A text, which may be `empty`."""
    if not isinstance(value, str) or not (value or empty):
        raise _refusal(call, name, value, "a text")
    return str(value)


def flags(name: str, given: Array, losses_BT: Tensor, remedy: str) -> Tensor:
    """[B, T] float64 of 0 and 1. What is not boolean is read by the host: other numbers would scale sums without an error."""
    tensor = torch.as_tensor(given).to(losses_BT.device)
    if tensor.shape != losses_BT.shape:
        raise InputError(f"{name} has shape {list(tensor.shape)}, the losses {list(losses_BT.shape)}")
    if tensor.dtype != torch.bool and (other := tensor[(tensor != 0) & (tensor != 1)]).numel():
        raise InputError(f"{name} has {other[0].item():g} among its values; give booleans, or 0 and 1: {name}={remedy}")
    return tensor.double()


def _number(value: Any) -> Any:
    """Python's number of a number, or of an array of one element; None of anything else, such as a bool."""
    # Python's have no item(), arrays of several elements raise
    with contextlib.suppress(AttributeError, RuntimeError, TypeError, ValueError):
        value = value.item()
    return value if isinstance(value, Real) and not isinstance(value, (bool, np.bool_)) else None


def _refusal(call: str, name: str, value: Any, wanted: str) -> InputError:
    return InputError(f"{call}({name}={' '.join(repr(value).split())[:80]}): give {wanted}")
