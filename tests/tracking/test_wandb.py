"""The W&B mirror: what it sends, and that it cannot stop or slow a run."""

import hashlib
import json
import shutil
import time
import types
from pathlib import Path

import pandas as pd
import pytest

from emergence_train.logging_config import Logging, Wandb
from emergence_train.tracking import wandb as module
from emergence_train.tracking.wandb import Mirror, chosen_mode
from support import command, metrics, run_python
from tracking.wandb_file import OfflineRun


class FakeWandb(types.ModuleType):
    """A fake of wandb that records its calls."""

    def __init__(self, init=None):
        super().__init__("wandb")
        self.calls, self.defined, self.settings, self.finished = [], [], None, False
        self.summary = {}
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
def wandb_section(monkeypatch) -> Wandb:
    for name in ("WANDB_MODE", "WANDB_RUN_ID", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return Logging(wandb="offline").wandb


def test_everything_is_against_tokens(wandb_section, tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(__import__("sys").modules, "wandb", wandb)
    mirror = Mirror(wandb_section, "run", tmp_path, {"deepspeed": {"train_batch_size": 8}}, print)
    mirror.send({"step": 8, "tokens": 64, "train/loss": 5.0})
    table = pd.DataFrame(
        {"step": 8, "tokens": 64, "split": "iid", "position": [1, 2], "count": 2, "loss_sum": [8.0, 6.0]}
    )
    mirror.send(table)
    mirror.close()
    assert wandb.finished and (("*",), {"step_metric": "tokens"}) in wandb.defined
    assert wandb.calls[0] == {"step": 8, "tokens": 64, "train/loss": 5.0}
    assert (wandb.calls[1]["step"], wandb.calls[1]["tokens"]) == (8, 64)
    _, (xs, ys), keys = wandb.calls[1]["loss_by_position"]
    assert (xs, ys, keys["keys"]) == ([[1, 2]], [[4.0, 3.0]], ["iid"])
    assert wandb.settings["config"]["deepspeed"]["train_batch_size"] == 8 and wandb.settings["mode"] == "offline"


def test_the_run_of_a_directory_is_one_wherever_it_lies(tmp_path):
    """Moved aside and trained anew under its name, and copied: three directories of one name are three W&B runs."""

    def known_as(directory):
        settings = module.init_settings(Wandb(), "run", directory, {}, "offline")
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


def test_files_beside_a_run_that_is_not_ours_are_our_own(tmp_path, monkeypatch):
    """W&B would share one directory among all users, whose second fails."""
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    run = tmp_path / "run"
    (run / "wandb").mkdir(parents=True)

    def place():
        return module.init_settings(Wandb(), "run", run, {}, "offline")["dir"]

    assert place() == str(run)
    monkeypatch.setattr("os.access", lambda path, mode: path != run / "wandb")
    first, second = Path(place()), Path(place())
    assert first != second and first.parent == second.parent == tmp_path and first.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(module.tempfile, "tempdir", "/dev/full")
    assert place() == str(run), "W&B stops no run"


def test_a_network_that_hangs_costs_nothing(wandb_section, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", FakeWandb(lambda: time.sleep(60)))
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(module, "QUEUE", 50)
    lines = []
    began = time.monotonic()
    mirror = Mirror(wandb_section, "run", tmp_path, {}, lines.append)
    for step in range(200):
        mirror.send({"tokens": step})
    mirror.close()
    assert time.monotonic() - began < 20 and "was abandoned" in lines[0]
    assert lines[1].startswith("W&B was too slow for 15")  # 200 rows and the end less the 50 that fit


def test_an_error_is_logged_once(wandb_section, tmp_path, monkeypatch):
    def fail():
        raise OSError("no\nroute to host")

    monkeypatch.setitem(__import__("sys").modules, "wandb", FakeWandb(fail))
    lines = []
    mirror = Mirror(wandb_section, "run", tmp_path, {}, lines.append)
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


SECTION = "{mode: offline, project: p, entity: e, group: g, tags: [a, b], notes: n, job_type: pretrain, "
SECTION += "system: false, checkpoints: true}"
STOPPED = """
import sys
from emergence_train import config
from emergence_train.training.run import train
train(config.load(sys.argv[1], sys.argv[2:]), stop_after=6)
"""


def uris(folder):
    return [file.as_uri() for file in sorted(folder.iterdir())]


def test_offline_the_whole_run_is_in_one_directory(config_file, tmp_path):
    """With the real client: stopped, resumed, then synced, and the run moved; each time one directory of one id has all."""
    script, run = tmp_path / "stopped.py", tmp_path / "runs" / "run"
    script.write_text(STOPPED)
    over = [f"logging.wandb={SECTION}", "tasks=[{task: copying, items: 4}]", "samples={prompts: [The], tokens: 3}"]
    assert run_python(str(script), str(config_file), *over, WANDB_MODE="offline").returncode == 0
    first = OfflineRun(run)
    assert list(first.values("train/loss")) == [256 * step for step in range(1, 6)]  # the last waits for the next
    done = command("train", str(config_file), *over)
    assert done.returncode == 0 and "W&B" not in done.stdout, done.stderr + done.stdout
    seen = OfflineRun(run)
    assert seen.values("train/loss") == {row["tokens"]: row["loss"] for row in metrics(run)}
    assert seen.values("val/iid/loss") == {row["tokens"]: row["loss"]["iid"] for row in metrics(run, "validation")}
    names = {"val/ood/loss", "perf/memory", "perf/tokens_per_second", "train/lr", "tasks/copying/acc", "samples/_type"}
    assert all(seen.values(name) for name in names) and {row["step"] for row in seen.history()} == set(range(1, 13))
    assert seen.axes()["*"] == "tokens" and "step" in seen.axes() and seen.statistics() == 0
    identity = (
        seen.run.project,
        seen.run.entity,
        seen.run.run_group,
        list(seen.run.tags),
        seen.run.notes,
        seen.run.job_type,
    )
    assert identity == ("p", "e", "g", ["a", "b"], "n", "pretrain")
    assert seen.run.run_id == first.run.run_id == json.loads((run / "wandb.json").read_text())["id"]
    iid = {row["tokens"]: row["loss"]["iid"] for row in metrics(run, "validation")}
    best, summary = min(iid, key=iid.get), seen.summary()
    assert summary["best/val/iid/loss"] == iid[best] and summary["best/tokens"] == best
    assert (summary["last/step"], summary["last/tokens"]) == (12, 12 * 256)
    assert summary["last/val/iid/loss"] == iid[12 * 256] and summary["last/train/loss"] == metrics(run)[-1]["loss"]
    states = sorted((run / "checkpoints").glob("step-*"))
    metadata, aliases, references = seen.artifacts()[-1]
    assert set(aliases) == {"latest", "step-12"} and references == uris(states[-1]) and metadata["step"] == 12
    assert metadata["manifest_sha256"] == hashlib.sha256((states[-1] / "manifest.json").read_bytes()).hexdigest()
    shutil.move(run, tmp_path / "moved")
    assert command("sync", str(tmp_path / "moved"), WANDB_MODE="offline").returncode == 0
    synced = OfflineRun(tmp_path / "moved")
    assert synced.values("train/loss") == seen.values("train/loss") and synced.run.run_id == seen.run.run_id
    assert {name: value for name, value in synced.summary().items() if name.startswith(("best/", "last/"))} == {
        name: value for name, value in summary.items() if name.startswith(("best/", "last/"))
    }
    assert synced.artifacts()[-1][2] == uris(tmp_path / "moved" / "checkpoints" / states[-1].name)


def test_what_a_section_leaves_open_is_left_to_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "of-the-sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "trial-7")
    settings = module.init_settings(Wandb(), "run", tmp_path, {}, "offline")
    assert (settings["project"], settings["id"]) == ("of-the-sweep", "trial-7")
    assert not {"entity", "group", "tags", "notes", "job_type"} & set(settings)
    monkeypatch.delenv("WANDB_RUN_ID")
    assert module.init_settings(Wandb(project="mine"), "run", tmp_path, {}, "offline")["project"] == "mine"
    assert module.run_id(tmp_path) == "trial-7", "kept"


def test_a_mode_alone_stands_for_the_section():
    assert Logging.model_validate({"wandb": "online"}) == Logging.model_validate({"wandb": {"mode": "online"}})


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


REFUSED = """
import http.server, os, sys, threading, time
from pathlib import Path
class Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        if sys.argv[2] == "never":
            time.sleep(1000)
        self.send_response(int(sys.argv[2]))
        self.end_headers()
        self.wfile.write(b'{"data": null, "errors": [{"message": "no"}]}')
    do_GET = do_POST
    def log_message(self, *values):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ.update(WANDB_API_KEY="0" * 40, WANDB_BASE_URL=f"http://127.0.0.1:{server.server_address[1]}")
from emergence_train.logging_config import Wandb
from emergence_train.tracking import wandb
wandb.INIT_SECONDS = 4
mirror = wandb.Mirror(Wandb(mode="online"), "run", Path(sys.argv[1]), {}, print)
for step in range(1, 6):
    mirror.send({"step": step, "tokens": step * 8, "train/loss": 1 / step})
mirror.close(60)
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["404", "never"])
def test_a_server_that_refuses_or_hangs_leaves_it_offline(tmp_path, answer):
    """With the real client: the client's own process knew the id already, and refused the run that was to be offline."""
    script, run = tmp_path / "script.py", tmp_path / "run"
    script.write_text(REFUSED)
    run.mkdir()
    began = time.monotonic()
    done = run_python(str(script), str(run), answer)
    assert "kept offline" in done.stdout and "stopped" not in done.stdout, done.stdout + done.stderr
    kept = OfflineRun(run)
    assert kept.values("train/loss") == {8 * step: 1 / step for step in range(1, 6)}
    assert kept.run.run_id == module.run_id(run) and time.monotonic() - began < 60


@pytest.mark.slow
def test_a_branch_has_an_id_of_its_own(config_file, tmp_path):
    """And the points after the fork; the parent keeps its own."""
    words = ["train", str(config_file), "logging.wandb=offline", "training.tokens=2048", "checkpoints.every_tokens=512"]
    assert command(*words, "name=parent").returncode == 0
    parent = tmp_path / "runs" / "parent"
    step = sorted((parent / "checkpoints").glob("step-*"))[-2].name.removeprefix("step-").lstrip("0")
    done = command(*words, "name=child", "--from", f"{parent}@{step}")
    assert done.returncode == 0, done.stderr
    runs = [OfflineRun(tmp_path / "runs" / name) for name in ("parent", "child")]
    assert len({run.run.run_id for run in runs} | {module.run_id(parent)}) == 2
    steps = [row["step"] for row in runs[1].history() if "train/loss" in row]
    assert steps == list(range(int(step) + 1, max(steps) + 1))


@pytest.mark.parametrize("home", ["/proc/nope", "writable"])
def test_wandb_keeps_its_files_in_the_run_without_a_home(tmp_path, monkeypatch, home):
    """A home that cannot be written (to root neither); where it can, and where a folder is named, nothing changes."""
    monkeypatch.setenv("HOME", str(tmp_path / "home") if home == "writable" else home)
    for name in ("WANDB_DATA_DIR", "WANDB_CONFIG_DIR", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")  # empty is not given, by the specification
        if name.startswith("WANDB"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_CACHE_DIR", "/named")
    monkeypatch.setattr(module.logging, "raiseExceptions", True)  # a mirror that another test left behind is quiet
    with module.own_folders(tmp_path / "run" / "wandb"), module.quiet_logging():
        chosen = [module.os.environ.get(f"WANDB_{kind}_DIR") for kind in ("DATA", "CACHE", "CONFIG")]
    assert "WANDB_DATA_DIR" not in module.os.environ and module.logging.raiseExceptions
    own = [str(tmp_path / "run" / "wandb" / kind) for kind in ("data", "config")]
    assert chosen == ([None, "/named", None] if home == "writable" else [own[0], "/named", own[1]])
    assert not (tmp_path / "run").exists() and not (tmp_path / "wandb").exists()


def test_logs_of_a_full_disk_are_quiet_to_the_end(monkeypatch, capsys):
    """W&B's threads write their log after the mirror has ended, too."""
    monkeypatch.setattr(module.logging, "raiseExceptions", True)
    logger, handler = module.logging.getLogger("wandb"), module.logging.FileHandler("/dev/full")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", False)
    with module.quiet_logging():
        logger.addHandler(handler)
        logger.error("within")
    logger.error("after")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(logger, "handlers", [module.logging.FileHandler("/dev/full")])
    with module.quiet_logging():
        pass
    logger.error("of a handler of the user's own")
    assert "No space left" in capsys.readouterr().err


@pytest.mark.parametrize("length", [30, 300])
def test_reasons_end_with_a_word(length):
    """A path that is cut inside names another file."""
    reason = module.reason_of(OSError(f"No space left on device: {'a' * length}"))
    assert reason == ("No space left on device: " + "a" * 30 if length == 30 else "No space left on device: ...")


def test_the_mirror_of_a_run_without_a_home_is_whole(config_file, tmp_path):
    """W&B's own files; it stages tables under its data folder."""
    done = command("train", str(config_file), "logging.wandb=offline", HOME="/proc/nope")
    assert done.returncode == 0 and "W&B stopped" not in done.stdout + done.stderr, done.stderr
    assert list((tmp_path / "runs" / "run").glob("wandb/offline-run-*/run-*.wandb"))


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_an_exit_of_wandb_is_logged(wandb_section, tmp_path, monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setitem(__import__("sys").modules, "wandb", FakeWandb(fail))
    lines = []
    mirror = Mirror(wandb_section, "run", tmp_path, {}, lines.append)
    mirror.thread.join()
    assert not lines, "where the same Ctrl-C ends the run too, training does not continue"
    for _ in range(2):
        mirror.send({"step": 1})
    mirror.close()
    assert len(lines) == 1 and type(error).__name__ in lines[0] and "training continues" in lines[0]
    ended: list[str] = []
    Mirror(wandb_section, "run", tmp_path, {}, ended.append).close()
    assert len(ended) == 1 and "W&B stopped" in ended[0] and "training" not in ended[0]
