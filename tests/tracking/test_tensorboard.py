"""TensorBoard's files, read by its own reader where it is installed; without the package one line."""

import importlib.util

import pytest

from emergence_train.errors import InputError
from emergence_train.tracking import tensorboard as module
from support import command

needs_package = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="the extra tensorboard")


@needs_package
def test_a_resumed_run_has_each_step_once(tmp_path):
    """Steps 1 to 6, then again from 4 on, as after a rewind."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for begin, end, loss in ((0, 6, 1.0), (3, 8, 2.0)):
        files = module.EventFiles(tmp_path, begin, pytest.fail)
        for step in range(begin + 1, end + 1):
            files.send({"step": step, "tokens": 8 * step, "train/loss": loss})
        files.send({"step": end, "tokens": 8 * end, "samples": [{"prompt": "a", "text": "b"}]})
        files.close()
    events = EventAccumulator(str(tmp_path / module.FOLDER))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    assert losses == {1: 1.0, 2: 1.0, 3: 1.0, 4: 2.0, 5: 2.0, 6: 2.0, 7: 2.0, 8: 2.0}
    assert len(events.Scalars("train/loss")) == 8


def test_without_the_package_it_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    with pytest.raises(InputError, match="pip install 'emergence-train\\[tensorboard\\]', or set it to false"):
        module.check()


def test_a_failure_is_logged_once_and_ends_nothing(tmp_path):
    (tmp_path / module.FOLDER).write_text("in the way")
    lines = []
    files = module.EventFiles(tmp_path, 0, lines.append)
    files.send({"step": 1, "tokens": 8, "train/loss": 1.0})
    files.close()
    assert len(lines) == 1 and "training continues" in lines[0]


@needs_package
def test_a_run_writes_them_where_they_are_asked_for(config_file, tmp_path):
    done = command("train", str(config_file), "logging.tensorboard=true", "training.tokens=1024")
    assert done.returncode == 0 and "TensorBoard" not in done.stdout, done.stdout + done.stderr
    assert list((tmp_path / "runs" / "run" / "tensorboard").glob("events.out.tfevents.*"))
