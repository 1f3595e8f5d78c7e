"""Updating W&B: offline as a whole run, online with the missing points."""

import sys
import types

import pytest
import yaml

from emergence_train.errors import InputError, RunError
from emergence_train.recorder import tables
from emergence_train.tracking import sync as module
from emergence_train.tracking.sync import sync
from support import command, metrics, small_config


@pytest.fixture(scope="module")
def run(data_path, tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    tree = small_config(data_path, place)
    tree["logging"]["wandb"] = "auto"
    (place / "config.yaml").write_text(yaml.safe_dump(tree))
    done = command("train", str(place / "config.yaml"), WANDB_MODE="disabled")
    assert done.returncode == 0, done.stderr
    return place / "run"


class Server(types.ModuleType):
    """A fake of wandb and its server: keeps the points it is sent."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.points, self.there, self.default_entity, self.dir = [], False, "me", "x/files"
        self.errors = types.SimpleNamespace(CommError=ConnectionError)
        self.plot = types.SimpleNamespace(line_series=lambda *a, **k: "chart")
        self.summary = {}

    def Settings(self, **given):  # noqa: N802 - wandb's name
        return given

    def Api(self, **given):  # noqa: N802
        return self

    def run(self, path):
        if not self.there:
            raise ValueError(f"Could not find run {path}")
        return self

    def scan_history(self, keys):
        return [point for point in self.points if all(key in point for key in keys)]

    def init(self, **given):
        self.there = True
        return self

    def define_metric(self, *given, **named):
        pass

    def log(self, values):
        self.points.append(values)

    def finish(self):
        pass


def test_only_missing_points_are_sent(run, monkeypatch):
    server, lines = Server(), []
    monkeypatch.setitem(__import__("sys").modules, "wandb", server)
    monkeypatch.setenv("WANDB_MODE", "online")
    first = sync(run, lines.append)
    assert first["sent"] == len(server.points) == 12 + 3 + 1 + 3, "steps, validations, a forecast, charts"
    losses = {point["tokens"]: point["train/loss"] for point in server.points if "train/loss" in point}
    assert losses == {row["tokens"]: row["loss"] for row in metrics(run)}
    assert sync(run, lines.append)["sent"] == 0 and "up to date" in lines[-1]
    server.points = [point for point in server.points if point["tokens"] != 1024]  # step 4: a row, its means and chart
    assert sync(run, lines.append)["sent"] == 3
    assert sync(run, lines.append)["sent"] == 0


def test_a_server_that_fails_leaves_one_line(run, monkeypatch):
    server = Server()
    server.init = server.Api = lambda **given: (_ for _ in ()).throw(OSError("no\nroute"))
    monkeypatch.setitem(__import__("sys").modules, "wandb", server)
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(RunError, match="no route.*try again"):
        sync(run, print)


def test_wrong_use(run, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"has no config\.yaml; name the directory of a run"):
        sync(tmp_path, print)
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(InputError, match=r"config\.yaml: cannot be read \(.*\); restore it"):
        sync(tmp_path, print)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(InputError, match="disabled"):
        sync(run, print)


def test_offline_with_the_real_wandb(run):
    """The command, writing a whole offline run that `wandb sync` would take."""
    before = (run / "metrics.jsonl").read_bytes()
    done = command("sync", str(run), WANDB_MODE="offline")
    assert done.returncode == 0 and "19 of 19 points sent, offline; upload it with: wandb sync" in done.stdout, (
        done.stderr
    )
    (written,) = (run / "wandb").glob("offline-run-*/*.wandb")
    assert written.stat().st_size > 5_000 and (run / "metrics.jsonl").read_bytes() == before
    assert len(tables.read(tables.CURVES, run)) == 12
    assert module.chosen_mode("auto") in ("disabled", "offline")


def test_unwritable_directories_of_wandb_stop_nothing(data_path, tmp_path):
    tree = small_config(data_path, tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    nowhere = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), "/proc/none")
    nowhere |= dict.fromkeys(("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"), "/dev/full")
    done = command("train", str(tmp_path / "config.yaml"), "logging.wandb=offline", **nowhere)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert len(metrics(tmp_path / "run")) == 12


def test_an_exit_of_wandb_is_one_line(run, monkeypatch):
    server = Server()
    server.init = lambda **given: sys.exit(3)
    monkeypatch.setitem(sys.modules, "wandb", server)
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(RunError, match=r"W&B was not updated \(SystemExit 3\); try again"):
        sync(run, print)
