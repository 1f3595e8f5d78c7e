"""trainer_state.json of the Hugging Face Trainer: its log_history has a row a logged step, evaluations among them."""

import json
from pathlib import Path

from emergence_train.analysis.logs.encoded import stem_of, suffix_of, text_of
from emergence_train.analysis.logs.log import Format, Log, frame_of
from emergence_train.errors import InputError

FILE = "trainer_state.json"


def _file(path: Path) -> Path:
    """The newest state under an output directory, or the file itself."""
    if not path.is_dir():
        return path
    steps = [(int(p.parent.name.rpartition("-")[2]), p) for p in path.glob(f"checkpoint-*/{FILE}") if _step(p)]
    return path / FILE if (path / FILE).is_file() or not steps else max(steps)[1]


def _step(path: Path) -> bool:
    return path.parent.name.rpartition("-")[2].isdigit()


def read_trainer(path: Path) -> list[Log]:
    file = _file(path)
    try:
        state = json.loads(text_of(file))
        steps = [row for row in state["log_history"] if "step" in row]
        history = [row for row in steps if "loss" in row] or [row for row in steps if "eval_loss" in row]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: is no trainer_state.json of transformers ({error!r}); name one that is") from None
    if not history:
        raise InputError(f"{file}: its log_history has no loss; set logging_steps of the Trainer and run again")
    end = state.get("max_steps") or 0
    return [Log(_name(file), file, frame_of(history), end_step=int(end) if end > 0 else None)]


def _name(file: Path) -> str:
    """The output directory's name, which the Trainer's checkpoints lie in."""
    if file.name != FILE:
        return stem_of(file)
    folder = file.resolve().parent
    return folder.parent.name if folder.name.startswith("checkpoint-") else folder.name


def _takes(path: Path, head: str) -> bool:
    return _file(path).is_file() if path.is_dir() else suffix_of(path) == ".json" and '"log_history"' in head


HF = Format("hf", "trainer_state.json of the Hugging Face Trainer, or the directory it lies in", _takes, read_trainer)
