"""The W&B mirror: what it sends, and that it cannot stop or slow a run."""

import hashlib
import json
import shutil
import time
import types

import pandas as pd
import pytest

from emergence_train.config import Logging
from emergence_train.tracking import wandb as module
from emergence_train.tracking.wandb import Mirror, chosen_mode
from support import command, metrics, run_python


class FakeWandb(types.ModuleType):
    """A fake of wandb that records its calls."""

    def __init__(self, init=None):
        super().__init__("wandb")
        self.calls, self.defined, self.settings, self.finished = [], [], None, False
        self._init = init
        self.plot = types.SimpleNamespace(line_series=lambda *a, **k: ("chart", a, k))

    def Settings(self, **settings):  # noqa: N802 - wandb's name
        return settings

    def init(self, **settings):
        if self._init:
            self._init()
        self.settings = settings
        return self

    def define_metric(self, *a, **k):
        self.defined.append((a, k))

    def log(self, values):
        self.calls.append(values)

    def finish(self):
        self.finished = True


@pytest.fixture
def logging(monkeypatch) -> Logging:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return Logging(wandb="offline")


def test_everything_is_against_tokens(logging, tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(__import__("sys").modules, "wandb", wandb)
    mirror = Mirror(logging, "run", tmp_path, {"deepspeed": {"train_batch_size": 8}}, print)
    mirror.send({"tokens": 64, "loss": 5.0})
    table = pd.DataFrame({"tokens": 64, "split": "iid", "position": [1, 2], "count": 2, "loss_sum": [8.0, 6.0]})
    mirror.positions(table)
    mirror.close()
    assert wandb.finished and (("*",), {"step_metric": "tokens"}) in wandb.defined
    assert wandb.calls[0] == {"tokens": 64, "loss": 5.0}
    _, (xs, ys), keys = wandb.calls[1]["loss_by_position"]
    assert (xs, ys, keys["keys"]) == ([[1, 2]], [[4.0, 3.0]], ["iid"])
    assert wandb.settings["config"]["deepspeed"]["train_batch_size"] == 8 and wandb.settings["mode"] == "offline"


def test_the_run_of_a_directory_is_one_wherever_it_lies(tmp_path):
    """Moved aside and trained anew under its name, and copied: three directories of one name are three W&B runs."""

    def known_as(directory):
        settings = module.init_settings("project", "run", directory, {}, "offline")
        return settings["name"], settings["id"]

    run = tmp_path / "run"
    run.mkdir()
    first = known_as(run)
    assert known_as(run) == first and first[0] == "run"
    run.rename(tmp_path / "old")
    assert known_as(tmp_path / "old") == ("run (old)", first[1])
    run.mkdir()
    again = known_as(run)
    shutil.copytree(run, tmp_path / "copy")
    copied = known_as(tmp_path / "copy")
    assert len({first[1], again[1], copied[1]}) == 3
    assert (known_as(run), known_as(tmp_path / "copy")) == (again, copied)


def test_a_run_begun_before_ids_were_kept_stays_itself(tmp_path):
    (tmp_path / "wandb").mkdir()
    assert module.run_id(tmp_path) == hashlib.sha256(str(tmp_path.resolve()).encode()).hexdigest()[:16]


def test_what_is_shown_of_the_tasks():
    row = {
        "kind": "evaluation",
        "step": 4,
        "tokens": 64,
        "seconds": 1.0,
        "share_of_training": 0.2,
        "value": {"copying/acc": 0.5},
    }
    assert module.view(row) == {"tokens": 64, "tasks/copying/acc": 0.5, "tasks/share_of_training": 0.2}


def test_a_network_that_hangs_costs_nothing(logging, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", FakeWandb(lambda: time.sleep(60)))
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(module, "QUEUE", 50)
    lines = []
    began = time.monotonic()
    mirror = Mirror(logging, "run", tmp_path, {}, lines.append)
    for step in range(200):
        mirror.send({"tokens": step})
    mirror.close()
    assert time.monotonic() - began < 20 and "was abandoned" in lines[0]
    assert lines[1].startswith("W&B was too slow for 15")  # 200 rows and the end less the 50 that fit


def test_an_error_is_logged_once(logging, tmp_path, monkeypatch):
    def fail():
        raise OSError("no\nroute to host")

    monkeypatch.setitem(__import__("sys").modules, "wandb", FakeWandb(fail))
    lines = []
    mirror = Mirror(logging, "run", tmp_path, {}, lines.append)
    mirror.thread.join(5)
    mirror.send({"tokens": 1})
    mirror.close()
    assert len(lines) == 1 and "no route to host" in lines[0] and "training continues" in lines[0]


def test_the_mode_follows_the_credentials(monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert chosen_mode("auto") == "offline" and chosen_mode("online") == "online"
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert chosen_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert chosen_mode("auto") == "disabled"


def test_offline_wandb_really_writes_its_run(config_file, tmp_path):
    done = command("train", str(config_file), "logging.wandb=offline", "name=with")
    assert done.returncode == 0 and "W&B" not in done.stdout, done.stderr + done.stdout
    files = list((tmp_path / "runs" / "with" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 1 and files[0].stat().st_size > 5_000


def test_wandb_without_a_network_leaves_the_run_whole(config_file, tmp_path):
    """Online, with a key, and a server address where no one answers; it is asked for 4 seconds, not 20."""
    script = tmp_path / "impatient.py"
    script.write_text(
        "import runpy\n"
        "from emergence_train.tracking import wandb\n"
        "wandb.INIT_SECONDS = 4\n"
        "runpy.run_module('emergence_train', run_name='__main__')\n"
    )
    began = time.monotonic()
    done = run_python(
        str(script),
        "train",
        str(config_file),
        "logging.wandb=online",
        WANDB_API_KEY="0" * 40,
        WANDB_MODE="online",
        WANDB_BASE_URL="http://127.0.0.1:9",
    )
    assert done.returncode == 0 and "kept offline" in done.stdout, done.stderr + done.stdout
    assert list((tmp_path / "runs" / "run" / "wandb").glob("offline-run-*"))
    assert len(metrics(tmp_path / "runs" / "run")) == 12 and time.monotonic() - began < 100
    assert json.loads((tmp_path / "runs" / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 12


def test_a_straggler_has_charts():
    row = {
        "kind": "straggler",
        "step": 9,
        "tokens": 64,
        "rank": 3,
        "operation": "forward",
        "seconds": 0.5,
        "share": 0.3,
    }
    assert module.view(row) == {"tokens": 64, "straggler/rank": 3, "straggler/seconds": 0.5, "straggler/share": 0.3}
