"""Recording for the analyses: tables, logs, environment. Independent of configuration and DeepSpeed, for any trainer."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emergence_train.recorder.api import Recorder
    from emergence_train.recorder.logits import token_losses

__all__ = ["Recorder", "token_losses"]


def __getattr__(name: str) -> Any:
    """Recorder and token_losses import torch and pandas, which who imports another module here may not want."""
    if name in __all__:
        from emergence_train.recorder import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
