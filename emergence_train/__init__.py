"""The framework: data, models, training, evaluation, analysis and reports. The command line is emergence_train.cli."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emergence_train.opened_run import open_run

__version__ = "0.1.0"
__all__ = ["open_run"]


def __getattr__(name: str) -> Any:
    """open_run imports pandas and the analyses, which a command may not need."""
    if name == "open_run":
        from emergence_train.opened_run import open_run

        return open_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
