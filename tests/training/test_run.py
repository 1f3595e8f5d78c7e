"""Training by the command line: against a plain loop, over processes and ZeRO stages, stopped and resumed."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from emergence_train import config, files
from emergence_train.data.dataset import Dataset
from emergence_train.errors import InputError
from emergence_train.models.config import padded_vocabulary
from emergence_train.models.decoder import Decoder
from emergence_train.optim.groups import parameter_groups
from emergence_train.optim.schedule import learning_rate
from emergence_train.parallel.ranks import order_sums
from emergence_train.recorder import tables
from emergence_train.recorder.sessions import read_sessions
from emergence_train.training import run_directory
from emergence_train.watch.progress import progress
from faults.comparing import compare
from support import ROOT, command, metrics, run_python

STEPS, BATCH, SEQUENCE = 12, 8, 32


def plain_losses(loaded) -> tuple[list[float], list[float], np.ndarray]:
    """A single-process PyTorch loop without DeepSpeed and without the kernels' loss -> losses, norms, train sums."""
    dataset = Dataset(loaded.data, loaded.seed)
    shape = loaded.model.model_copy(update={"vocab_size": padded_vocabulary(dataset.vocabulary)})
    model = Decoder(shape)
    model.init_weights(loaded.seed)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1.0, betas=(0.9, 0.95), eps=1e-8)
    losses, norms, sums = [], [], np.zeros((STEPS, 2, SEQUENCE))
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                loaded.training.schedule, (step + 1) * BATCH * SEQUENCE, STEPS * BATCH * SEQUENCE
            )
        windows = torch.from_numpy(np.stack([dataset.sample(step * BATCH + i) for i in range(BATCH)]))
        token_loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten(), reduction="none")
        token_loss.mean().backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(token_loss.mean().item())
        rows = token_loss.detach().view(BATCH, SEQUENCE).double()
        sums[step] = torch.stack([rows.sum(0), rows.square().sum(0)]).numpy()
    return losses, norms, sums


@pytest.fixture(scope="module")
def plain(data_path):
    from support import small_config

    return plain_losses(config.Config.model_validate(small_config(data_path, data_path)))


@pytest.mark.parametrize(("stage", "processes"), [(0, 1), (1, 2), (2, 2), (3, 2)])
def test_losses_equal_a_plain_loop(config_file, tmp_path, plain, stage, processes):
    """fp32: losses within 2e-6 relative, gradient norms within 2e-5, position sums within 1e-5, at every step."""
    fresh = stage == 1  # by torchrun; the others as forks
    over = [f"training.zero_stage={stage}", f"training.deterministic={stage == 3}".lower()]
    done = command("train", str(config_file), *over, processes=processes, fresh=fresh)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr[-2000:]  # libraries' warnings cannot be fixed here
    run = tmp_path / "runs" / "run"
    rows = metrics(run)
    losses, norms, sums = plain
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=2e-6)
    assert [row["grad_norm"] for row in rows] == pytest.approx(norms, rel=2e-5)
    assert losses[-1] < losses[0] - 0.5, "it learns"

    table = tables.read(tables.POSITIONS, run)
    assert set(table["split"]) == {"train", "iid", "ood", "manuals", "speeches"} and set(table["step"]) == {4, 8, 12}
    train = table[table["split"] == "train"]
    assert (train["count"] == 4 * BATCH).all()
    for step in (4, 8, 12):
        at = train[train["step"] == step]
        assert at["loss_sum"].to_numpy() == pytest.approx(sums[step - 4 : step, 0].sum(0), rel=1e-5)
        assert at["loss_sq_sum"].to_numpy() == pytest.approx(sums[step - 4 : step, 1].sum(0), rel=1e-5)
    counts = table[table["step"] == 12].groupby("split")["count"].agg(["min", "max"])
    assert counts.loc["iid"].tolist() == [12, 12] and counts.loc["ood"].tolist() == [5, 5]
    assert done.stdout.count("checkpoint  step") == 3 and "MFU n/a" in done.stdout and "ETA" in done.stdout


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_over_two_processes_follows_fp32(config_file, tmp_path, plain, stage):
    done = command("train", str(config_file), f"training.zero_stage={stage}", "training.precision=bf16", processes=2)
    assert done.returncode == 0, done.stderr
    assert [row["loss"] for row in metrics(tmp_path / "runs" / "run")] == pytest.approx(plain[0], abs=0.03)


@pytest.mark.parametrize(("stage", "processes"), [(1, 1), pytest.param(2, 2, marks=pytest.mark.slow), (3, 2)])
def test_a_stop_and_a_start_leave_no_trace(config_file, tmp_path, stage, processes):
    """Stopped between checkpoints and started again, a run's logs equal the uninterrupted run's, bit for bit."""
    stop = (
        "import sys; from emergence_train import config; from emergence_train.parallel.ranks import leave\n"
        "from emergence_train.training.run import train;"
        "train(config.load(sys.argv[1], sys.argv[2:]), stop_after=6); leave(0)"
    )
    script = tmp_path / "stop.py"
    script.write_text(stop)
    over = [str(config_file), f"training.zero_stage={stage}"]
    whole = command("train", *over, "name=whole", processes=processes)
    first = run_python(str(script), *over, "name=parts", processes=processes)
    assert whole.returncode == first.returncode == 0, whole.stderr + first.stderr
    parts = tmp_path / "runs" / "parts"
    assert len(metrics(parts)) == 5, "the sixth step was still to be written when it stopped"
    second = command("train", *over, "name=parts", processes=processes)
    assert second.returncode == 0 and "resuming from step 4" in second.stdout, second.stderr
    compare(tmp_path / "runs" / "whole", parts)
    again = command("train", *over, "name=parts", processes=processes)
    assert again.returncode == 0 and "is finished" in again.stdout
    assert len(json.loads((parts / "environment.json").read_text())["sessions"]) == 2


def test_a_damaged_checkpoint_is_set_aside(config_file, tmp_path):
    command("train", str(config_file), "checkpoints.save_state=every", "name=whole")
    run = tmp_path / "runs" / "whole"
    whole = tmp_path / "runs" / "copy"
    shutil.copytree(run, whole)
    last = run / "checkpoints" / "step-0000000012"
    shutil.rmtree(last)
    damaged = next((run / "checkpoints" / "step-0000000008").glob("shard-*"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    done = command("train", str(config_file), "checkpoints.save_state=every", "name=whole")
    assert done.returncode == 0, done.stderr
    assert "set aside" in done.stdout and damaged.name in done.stdout and "resuming from step 4" in done.stdout
    compare(run, whole)


def contents(run: Path) -> dict[str, bytes]:
    """All files of a run but those that every start writes to."""
    own = ("environment.json", ".lock")
    return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name not in own}


@pytest.mark.parametrize("file", ["manifest.json", "state.json"])
@pytest.mark.parametrize("older", [True, False], ids=["an older state beside it", "alone"])
def test_a_state_of_a_newer_format_ends_the_start(config_file, tmp_path, file, older):
    """Whether or not this version could resume from another state: nothing is set aside, and nothing begins anew."""
    over = [str(config_file), "checkpoints.save_state=every", "training.tokens=3072"]
    first = command("train", *over)
    assert first.returncode == 0, first.stderr
    run = tmp_path / "runs" / "run"
    states = sorted((run / "checkpoints").glob("step-*"))
    shutil.rmtree(states.pop())  # it was not finished
    for state in states[-1 if older else 0 :]:
        changed = json.loads((state / file).read_text()) | {"format": 2}
        (state / file).write_text(json.dumps(changed))
        listing = json.loads((state / "manifest.json").read_text())
        for entry in listing["files"]:
            if entry["file"] == file:
                entry |= {"sha256": files.sha256(state / file), "bytes": (state / file).stat().st_size}
        (state / "manifest.json").write_text(json.dumps(listing))
    before = contents(run)
    done = command("train", *over)
    assert done.returncode == 2 and "saved by a newer version of emergence-train" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and contents(run) == before


def test_where_no_state_is_left_the_logs_are_put_away(config_file, tmp_path):
    assert command("train", str(config_file)).returncode == 0
    run = tmp_path / "runs" / "run"
    tables = {path.name: path.read_bytes() for path in (run / "positions").iterdir()}
    for path in run.glob("checkpoints/step-*"):
        shutil.rmtree(path)
    done = command("train", str(config_file))
    assert done.returncode == 0 and "starts over" in done.stdout, done.stderr
    assert {path.name: path.read_bytes() for path in (run / "begun-anew-1" / "positions").iterdir()} == tables
    assert len(metrics(run)) == len(metrics(run / "begun-anew-1")) == STEPS


def test_losses_do_not_depend_on_world_size_and_micro_batch(config_file, tmp_path):
    options = ["training.document_mask=true", "training.position_weights.head=0.5", "training.z_loss=0.0001"]
    first = command("train", str(config_file), *options, "name=one", "training.micro_batch=8")
    two = command("train", str(config_file), *options, "name=two", "training.micro_batch=1", processes=2)
    assert first.returncode == two.returncode == 0, first.stderr + two.stderr
    losses = [[row["loss"] for row in metrics(tmp_path / "runs" / name)] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=2e-6)
    norms = [[row["grad_norm"] for row in metrics(tmp_path / "runs" / name)] for name in ("one", "two")]
    assert norms[0] == pytest.approx(norms[1], rel=2e-5)


def test_log_spaced_start_and_logs_without_state(config_file, tmp_path):
    over = [str(config_file), "checkpoints.log_spaced_start=true", "checkpoints.save_state=never"]
    done = command("train", *over)
    run = tmp_path / "runs" / "run"
    assert done.returncode == 0 and not list(run.glob("checkpoints/*")), done.stderr
    assert sorted(set(tables.read(tables.POSITIONS, run)["step"])) == [1, 2, 4, 8, 12]
    assert "is finished" in command("train", *over).stdout


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.schedule.lr=0.02", "is a run with training.schedule.lr = 0.01, not 0.02"),
        ("data.sequence=16", "was prepared for sequences of 32"),
        ("model.vocab_size=64", "smaller than the tokenizer's"),
        ("data.path=nowhere", "is not a prepared data set"),
        ("training.batch=10", "not a multiple"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(config_file, tmp_path, override, message):
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(
        config.load(config_file, ["model.vocab_size=320"]).to_yaml()  # as a finished resolution would have left it
    )
    (run / "checkpoints").mkdir()  # it has begun: before that its configuration binds no one
    before = sorted(run.iterdir())
    done = command("train", str(config_file), override, processes=2 if "batch" in override else 0)
    lines = [line for line in done.stderr.splitlines() if line.startswith("emergence-train:")]
    assert len(lines) == 1 and message in lines[0], done.stderr
    assert done.returncode == 2
    assert [p for p in sorted(run.iterdir()) if p.name != ".lock"] == before


def test_a_run_is_trained_by_one_process_at_a_time(config_file, tmp_path):
    import fcntl

    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    with open(run / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = command("train", str(config_file))
    assert done.returncode == 2 and "another process is training this run" in done.stderr


def test_a_file_system_without_locks_is_trained_on_and_told(config_file, tmp_path, monkeypatch):
    loaded = config.load(config_file)
    run = tmp_path / "runs" / "run"

    def refusing(file, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    with contextlib.ExitStack() as held:
        assert run_directory.claim(run, loaded, held) is None
    monkeypatch.setattr("fcntl.flock", refusing)
    with contextlib.ExitStack() as held:
        assert "has no locks" in run_directory.claim(run, loaded, held)


def test_states_on_a_disk_that_is_not_mounted_are_waited_for(config_file, tmp_path):
    """The run does not begin anew, and nothing of it is moved."""
    assert command("train", str(config_file)).returncode == 0
    run = tmp_path / "runs" / "run"
    (run / "checkpoints").rename(tmp_path / "scratch")
    (run / "checkpoints").symlink_to(tmp_path / "scratch")
    assert "is finished" in command("train", str(config_file)).stdout
    (tmp_path / "scratch").rename(tmp_path / "unmounted")
    before = {path.name: path.read_bytes() for path in run.glob("*.*")}
    done = command("train", str(config_file))
    assert done.returncode == 1 and "which does not exist" in done.stderr and len(done.stderr.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in run.glob("*.*")} == before and len(metrics(run)) == STEPS


def test_a_table_or_rows_that_someone_deleted_are_missed(config_file, tmp_path):
    assert "is missing" not in command("train", str(config_file)).stdout
    run = tmp_path / "runs" / "run"
    (run / "positions" / "step-0000000012.parquet").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:1] + lines[4:]))
    done = command("train", str(config_file))
    assert done.returncode == 0, done.stderr
    assert "is missing 3 of 12 train rows of metrics.jsonl and the positions table of step 12;" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="wants a file that is always full")
def test_a_screen_that_cannot_be_written_does_not_end_a_run(config_file, tmp_path):
    """Standard output is often a file on the disk that is full. The exit code still says what happened."""
    script = tmp_path / "full.py"
    script.write_text(
        "import os, runpy, sys\n"
        "full = os.open('/dev/full', os.O_WRONLY); os.dup2(full, 1); os.dup2(full, 2)\n"
        "runpy.run_module('emergence_train', run_name='__main__')\n"
    )
    start = [str(script), "train", str(config_file)]
    done, wrong = run_python(*start), run_python(*start, "training.batch=10")
    assert done.returncode == 0 and wrong.returncode == 2
    assert len(metrics(tmp_path / "runs" / "run")) == STEPS


def test_sigterm_again_and_again_still_gives_75(config_file, tmp_path):
    start = [sys.executable, "-m", "emergence_train", "train", str(config_file)]
    variables = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log", "w") as log, subprocess.Popen(start, stdout=log, stderr=log, env=variables) as process:
        while process.poll() is None and "step 2/" not in (tmp_path / "log").read_text():
            time.sleep(0.002)
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.0005)
    assert process.returncode == 75 and "saved at step" in (tmp_path / "log").read_text()
    stopped = progress(tmp_path / "runs" / "run")
    assert stopped.state == "stopped" and "saved at step" in stopped.reason


def test_a_loss_that_is_not_a_number_ends_the_run_with_advice(config_file):
    """A z-loss of 1e38 overflows every gradient: skipped, at stage 0 too, but not for ever."""
    over = ["training.z_loss=1e38", "training.zero_stage=0", "faults.give_up_after=5"]
    done = command("train", str(config_file), *over)
    assert done.returncode == 1 and "lower training.schedule.lr" in done.stderr and "Traceback" not in done.stderr


def test_advice_after_divergence_names_no_broken_state(config_file, tmp_path):
    """The first update breaks the weights: no state has come before it, and those of steps 4 and 8 have it."""
    over = [
        "training.schedule.lr=1e30",
        "training.tokens=4096",
        "checkpoints.every_tokens=1024",
        "checkpoints.keep_last=9",
    ]
    done = command("train", str(config_file), *over, "faults.give_up_after=10")
    assert done.returncode == 1 and "10 steps in a row were skipped" in done.stderr, done.stderr
    assert (tmp_path / "runs/run/checkpoints/step-0000000008").is_dir() and "--from" not in done.stderr


def test_advice_after_divergence_names_the_last_good_state(config_file, tmp_path):
    """A rate that jumps at step 7 of 16: the state of step 4 is good, that of step 8 is not."""
    over = ["training.tokens=4096", "checkpoints.every_tokens=1024", "checkpoints.keep_last=9", "name=stable"]
    assert command("train", str(config_file), *over, "training.tokens=1024").returncode == 0
    jump = ["training.schedule={kind: constant, lr: 1.0e+30}", "name=broken", "--from", str(tmp_path / "runs/stable")]
    done = command("train", str(config_file), *over, *jump, "faults.give_up_after=6")
    assert done.returncode == 1 and "6 steps in a row were skipped" in done.stderr, done.stderr
    assert "@8" not in done.stderr and f"--from {tmp_path / 'runs/broken'}@4" in done.stderr


def test_an_empty_configuration_of_a_run_is_one_line(config_file, tmp_path):
    run = tmp_path / "runs/run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("")
    done = command("train", str(config_file))
    assert done.returncode == 2 and "is empty or no configuration; restore it" in done.stderr, done.stderr


def test_data_that_were_moved_are_kept_in_the_configuration(config_file, tmp_path, data_path):
    moved = shutil.copytree(data_path, tmp_path / "here")
    assert command("train", str(config_file), f"data.path={moved}").returncode == 0
    moved = moved.rename(tmp_path / "there")
    done = command("train", str(config_file), f"data.path={moved}")  # finished: only the path is new
    assert done.returncode == 0, done.stderr
    assert config.load(tmp_path / "runs/run/config.yaml").data.path == str(moved)
    assert command("evaluate", str(tmp_path / "runs/run")).returncode == 0


def test_a_step_that_deepspeed_skips_in_silence_is_told(config_file, tmp_path):
    done = command("train", str(config_file), "training.z_loss=1e38")
    assert done.returncode == 0 and "step skipped: gradient not finite" in done.stdout
    assert len(metrics(tmp_path / "runs" / "run", "skipped")) == STEPS


def test_the_deepspeed_launchers_argument_is_accepted(config_file):
    done = command("--local_rank=0", "train", str(config_file))
    assert done.returncode == 0, done.stderr


def test_the_environment_and_the_configuration_are_recorded(config_file, tmp_path):
    command("train", str(config_file))
    run = tmp_path / "runs" / "run"
    session = json.loads((run / "environment.json").read_text())["sessions"][0]
    assert session["versions"]["torch"] == torch.__version__ and session["device"] and session["command"]
    assert (session["exit_code"], session["reason"]) == (0, "done") and session["pid"] != os.getpid()
    resolved = config.load(run / "config.yaml")
    assert resolved.model.vocab_size == 320
    assert json.loads((run / "deepspeed.json").read_text())["train_batch_size"] == 8
    header = metrics(run, "run")[0]
    assert header["params"] == tables.read(tables.POSITIONS, run)["params"].iloc[0]


def test_end_by_another_thread_is_recorded(config_file, tmp_path):
    """Of a signal before the first step: `watch` and `ladder --status` know that nothing was lost."""
    script = tmp_path / "stopped.py"
    script.write_text(
        "import os, signal, time\n"
        "from emergence_train.cli import run\n"
        "from emergence_train.training.session import Session\n"
        "Session.run_from = lambda *given: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(60))\n"
        "run()\n"
    )
    assert run_python(str(script), "train", str(config_file)).returncode == 75
    (session,) = read_sessions(tmp_path / "runs" / "run")
    assert session["exit_code"] == 75 and session["reason"].startswith("SIGTERM: nothing trained since"), session


def test_a_run_from_before_kinds_is_the_same_run(config_file, tmp_path):
    """A key that a run's config.yaml is too old to have has its default."""
    loaded = config.load(config_file)
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    tree = loaded.model_dump(mode="json")
    del tree["model"]["kind"], tree["training"]["optimizer"]["kind"]
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    with contextlib.ExitStack() as held:
        assert run_directory.claim(run, loaded, held) is None


def test_another_weight_of_a_source_is_named(config_file, tmp_path):
    """Not the whole list of sources, twice."""
    run, loaded = tmp_path / "run", config.load(config_file, ["data.sources.1.weight=3"])
    with contextlib.ExitStack() as held:
        run_directory.claim(run, config.load(config_file), held)
    (run / "metrics.jsonl").touch()
    message = r"is a run with data\.sources\.1\.weight = 1\.0, not 3\.0; choose"
    with contextlib.ExitStack() as held, pytest.raises(InputError, match=message):
        run_directory.claim(run, loaded, held)


def test_what_others_wrote_before_rank_0_was_lost_is_no_run(config_file, tmp_path):
    """Their stacks stand in a directory that rank 0 had not yet claimed; a file of anyone else is still refused."""
    run, loaded = tmp_path / "claimed", config.load(config_file)
    (run / "stacks").mkdir(parents=True)
    (run / "stacks" / "flight-1").touch()
    with contextlib.ExitStack() as held:
        assert run_directory.claim(run, loaded, held) is None
    assert (run / "config.yaml").is_file()
    (run / "config.yaml").unlink()
    (run / "notes.txt").touch()
    with contextlib.ExitStack() as held, pytest.raises(InputError, match="holds files but no config.yaml"):
        run_directory.claim(run, loaded, held)


def test_sums_are_in_order_for_the_run_that_asks(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    order_sums(True)
    assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch.empty(3).fill_(1.0).sum() == 3
    order_sums(False)
    assert not torch.are_deterministic_algorithms_enabled()
