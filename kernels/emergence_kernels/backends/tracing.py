"""What torch.compile need not look into."""

from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable)


def constant_while_tracing(function: Function) -> Function:
    """As torch.compiler.assume_constant_result: the function runs while a graph is traced and its result is built in. That one
    imports dynamo and Triton with it, seconds that a program which compiles nothing should not wait for."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
