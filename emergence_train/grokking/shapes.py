"""The parameters of a stack of models as one buffer."""

import math
from collections.abc import Iterator

import torch

# By name: of one model, and the standard deviation of its first values
Shapes = dict[str, tuple[tuple[int, ...], float]]
# On a CPU the bits of a product with less than 12 columns, or with 2 or 3 rows, depend on where in memory its matrices begin, so
# on who else is in the stack (271 of 2,700 random shapes; from these sizes on none of 4,500).
LEAST_COLUMNS, LEAST_ROWS = 16, 4
ALIGNED = 16  # floats, 64 bytes: every matrix of every model begins alike, whatever the stack's size


def count(shapes: Shapes) -> int:
    """Parameters of one model."""
    return sum(math.prod(shape) for shape, _ in shapes.values())


def size(shapes: Shapes) -> int:
    """Floats that a model takes in the buffer."""
    return sum(_padded(shape) for shape, _ in shapes.values())


def views(buffer: torch.Tensor, shapes: Shapes) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter of a buffer (K, size) as (name, (K, *shape))."""
    place = 0
    for name, (shape, _) in shapes.items():
        yield name, buffer[:, place : place + math.prod(shape)].unflatten(1, shape)
        place += _padded(shape)


def first_values(shapes: Shapes, seed: int) -> torch.Tensor:
    """(size,) of one model, normal, drawn from its own seed; zeros between the parameters."""
    generator = torch.Generator().manual_seed(seed)
    buffer = torch.zeros(1, size(shapes))
    for (_, part), (shape, deviation) in zip(views(buffer, shapes), shapes.values()):
        part.copy_(torch.randn(1, *shape, generator=generator) * deviation)
    return buffer[0]


def wide(matrix_KDC: torch.Tensor) -> torch.Tensor:
    """(K, D, at least LEAST_COLUMNS), with zeros after its own columns."""
    return torch.nn.functional.pad(matrix_KDC, (0, max(LEAST_COLUMNS - matrix_KDC.shape[-1], 0)))


def tall(matrix_KVD: torch.Tensor) -> torch.Tensor:
    """(K, at least LEAST_ROWS, D), with zeros below its own rows."""
    return torch.nn.functional.pad(matrix_KVD, (0, 0, 0, max(LEAST_ROWS - matrix_KVD.shape[-2], 0)))


def _padded(shape: tuple[int, ...]) -> int:
    return -(-math.prod(shape) // ALIGNED) * ALIGNED
