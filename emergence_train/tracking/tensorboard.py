"""TensorBoard's event files, through torch's SummaryWriter. Like every view of a run, it may fail and the run goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from emergence_train.errors import InputError
from emergence_train.tracking import AXES

FOLDER = "tensorboard"  # in the run directory


def check() -> None:
    """Raise InputError where the package is not there."""
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise InputError(
            "logging.tensorboard needs a package: pip install 'emergence-train[tensorboard]', or set it to false"
        ) from None


class EventFiles:
    """Event files under tensorboard/ of the run: scalars against steps, samples as text. Values after `step`, of a start before
    this one, are purged."""

    def __init__(self, directory: Path, step: int, log: Callable[[str], None]) -> None:
        self.log, self.failed = log, False
        self.writer: Any = None

        def begin() -> None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(directory / FOLDER), purge_step=step + 1 if step else None)

        self._try(begin)

    def send(self, values: dict[str, Any]) -> None:
        """Write the values of a point (tracking.points.view)."""
        self._try(lambda: self._write(values))

    def close(self) -> None:
        self._try(lambda: self.writer.close())

    def _write(self, values: dict[str, Any]) -> None:
        step = values["step"]
        for name, value in values.items():
            if name == "samples":
                text = "\n\n".join(f"**{sample['prompt']}**{sample['text']}" for sample in value)
                self.writer.add_text(name, text, step)
            elif name not in AXES:
                self.writer.add_scalar(name, value, step)
        self.writer.add_scalar("tokens", values["tokens"], step)

    def _try(self, act: Callable[[], None]) -> None:
        if self.failed:
            return
        try:
            act()
        except Exception as error:
            self.log(f"TensorBoard stopped ({' '.join(str(error).split())[:200]}); training continues")
            self.failed = True
