"""Which parameters decay."""

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups: weight decay for matrices, none for vectors (norms)."""
    # ZeRO-3 has emptied the parameters; ds_shape has their shape.
    dimensions = {p: len(getattr(p, "ds_shape", p.shape)) for p in model.parameters()}
    return [
        {"params": [p for p, d in dimensions.items() if d >= 2], "weight_decay": weight_decay},
        {"params": [p for p, d in dimensions.items() if d < 2], "weight_decay": 0.0},
    ]
