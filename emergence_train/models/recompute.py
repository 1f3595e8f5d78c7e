"""Linear layers whose input is computed again in the backward pass rather than kept.

For inputs that are large and cheap: a norm's output, the product of a SwiGLU. What they are computed from is kept anyway, for
their own gradients. A layer saves its input for its weight's gradient; here that saved tensor is a note of how to make it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint


def linear_of(layer: nn.Module, make: Callable[[Tensor], Tensor], source: Tensor, x: Tensor | None = None) -> Tensor:
    """layer(make(source)), which keeps `source` in the place of the layer's input.

    Args:
        layer: a linear layer, of any kind: with main gradients, or partitioned by ZeRO-3.
        make: gives a contiguous tensor, of the same bits each time.
        source: a tensor that autograd keeps for another reason.
        x: make(source), where it is known already.
    """
    if torch.compiler.is_compiling():  # of the layer, made again, the compiler leaves out what no gradient needs
        return checkpoint(lambda given: layer(make(given)), source, use_reentrant=False, preserve_rng_state=False)
    x = make(source) if x is None else x
    if not torch.is_grad_enabled():
        return layer(x)
    place, size, kept = x.data_ptr(), x.numel(), source.detach()  # autograd holds pack: it must not hold x

    def pack(saved: Tensor) -> Any:
        return saved.shape if saved.data_ptr() == place and saved.numel() == size else saved  # the weight

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        with torch.no_grad():
            return make(kept).view(packed)

    with saved_tensors_hooks(pack, unpack):
        return layer(x)
