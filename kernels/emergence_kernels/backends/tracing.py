"""Whether tensors have values, functions that torch.compile treats as constants, and names for torch's profiler."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch.autograd import profiler

Function = TypeVar("Function", bound=Callable)


def traced() -> bool:
    """Whether tensors have shapes but no values: a graph is made, or a FakeTensorMode asks what a program would need."""
    return torch.compiler.is_compiling() or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


def constant_while_tracing(function: Function) -> Function:
    """As torch.compiler.assume_constant_result: the function runs while a graph is traced and its result is a constant of it.
    torch's own imports dynamo and Triton, which takes seconds also in a program that compiles nothing."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def profiled(function: Function) -> Function:
    """The function under the name emergence_kernels::NAME in traces of torch's profiler; while none runs, and in compiled graphs,
    nothing but a call more."""
    name = f"emergence_kernels::{function.__name__}"

    @functools.wraps(function)
    def run(*inputs: Any, **options: Any) -> Any:
        if traced() or not profiler._is_profiler_enabled:
            return function(*inputs, **options)
        with profiler.record_function(name):
            return function(*inputs, **options)

    return cast(Function, run)
