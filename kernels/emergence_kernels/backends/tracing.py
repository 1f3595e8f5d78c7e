"""Functions that torch.compile treats as constants."""

from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable)


def constant_while_tracing(function: Function) -> Function:
    """As torch.compiler.assume_constant_result: the function runs while a graph is traced and its result is a constant of it.
    torch's own imports dynamo and Triton, which takes seconds also in a program that compiles nothing."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
