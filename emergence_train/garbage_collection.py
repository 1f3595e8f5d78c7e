"""Python's cyclic garbage collector, while many modules are imported."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python's cyclic garbage collector from running in the block, which imports, and from what it has imported.

    torch and DeepSpeed make half a million objects that stay. While they come the collector walks all of them again and again,
    a tenth of the start of a run; later it would stop a training step for a third of a second to walk them once more.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.freeze()  # gc.get_referrers does not see what is frozen
            gc.enable()
