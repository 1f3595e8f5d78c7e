"""Runs that begin from another's state, and runs that are extended: equality with the parent, and errors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from support import command, metrics, small_config

STEP = 8 * 32  # tokens
STABLE = {"kind": "wsd", "lr": 0.01, "warmup_tokens": 512, "decay_tokens": 4 * STEP}


@pytest.fixture(scope="module")
def folder(data_path, tmp_path_factory) -> Path:
    """A constant run of 12 steps with a state every 4, and its configuration."""
    place = tmp_path_factory.mktemp("branch")
    tree = small_config(data_path, place / "runs")
    tree["name"], tree["training"]["tokens"] = "stable", 12 * STEP
    tree["training"]["schedule"] = {"kind": "constant", "lr": 0.01, "warmup_tokens": 512}
    tree["checkpoints"] = {"every_tokens": 4 * STEP, "keep_last": 9, "log_spaced_start": False}
    (place / "stable.yaml").write_text(yaml.safe_dump(tree))
    tree["name"], tree["training"]["schedule"] = "decayed", STABLE
    (place / "decayed.yaml").write_text(yaml.safe_dump(tree))
    done = command("train", str(place / "stable.yaml"))
    assert done.returncode == 0, done.stderr
    return place


def train(folder: Path, config: str, *more: str):
    return command("train", str(folder / f"{config}.yaml"), *more)


def losses(run: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in metrics(run)}


def test_a_decay_branch_equals_one_run_of_the_whole_schedule(folder):
    """wsd is constant until its decay: branching there is the same as having run it all, bit for bit."""
    whole = train(folder, "decayed", "name=whole")
    assert whole.returncode == 0, whole.stderr
    child = train(folder, "decayed", "name=child", "--from", f"{folder / 'runs/stable'}@8")
    assert child.returncode == 0, child.stderr
    run, parent = folder / "runs/child", folder / "runs/stable"
    assert sorted(losses(run)) == [9, 10, 11, 12]
    assert losses(run) == {s: loss for s, loss in losses(folder / "runs/whole").items() if s > 8}
    header = metrics(run, "run")[0]
    assert header["run"] == "child" and header["parent"] == {"run": "stable", "step": 8, "tokens": 8 * STEP}
    assert [path.stem for path in sorted((run / "positions").glob("*.parquet"))] == ["step-0000000012"]
    known = json.loads((run / "parent.json").read_text())
    assert known["first_step"] == 8 and known["same_samples"] is True
    assert "missing" not in child.stdout + child.stderr
    assert losses(parent)[9] != losses(run)[9] or losses(parent)[12] != losses(run)[12]
    again = train(folder, "decayed", "name=child", "--from", f"{parent}@8")  # the same command does nothing more
    assert again.returncode == 0 and "nothing to do" in again.stdout + again.stderr


def test_a_stopped_branch_resumes_by_the_same_command(folder):
    source = f"{folder / 'runs/stable'}@4"
    first = train(folder, "decayed", "name=cut", "training.tokens=1536", "--from", source)  # 6 steps
    assert first.returncode == 0, first.stderr
    run = folder / "runs/cut"
    for path in (run / "checkpoints").glob("step-*6"):  # as if it had been killed before its last state
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    before = losses(run)
    again = train(folder, "decayed", "name=cut", "training.tokens=1536", "--from", source)
    assert again.returncode == 0, again.stderr
    assert losses(run) == before and sorted(before) == [5, 6]


@pytest.mark.parametrize("left", ["parent.json alone", "no state"])
def test_a_branch_without_a_state_begins_anew_from_its_parent(folder, left):
    """Killed before its first state was there; or every state of it was lost, and its tables with them are moved aside."""
    source, name = f"{folder / 'runs/stable'}@8", f"lost-{left.split()[0]}"
    over = [f"name={name}", "training.tokens=2560"]  # 10 steps
    first = train(folder, "stable", *over, "--from", source)
    assert first.returncode == 0, first.stderr
    run = folder / "runs" / name
    before = losses(run)
    shutil.rmtree(run / "checkpoints")
    if left == "parent.json alone":
        shutil.rmtree(run / "positions")
        (run / "metrics.jsonl").unlink()
    again = train(folder, "stable", *over, *(["--from", source] if left == "no state" else []))
    assert again.returncode == 0, again.stderr
    assert losses(run) == before and sorted(before) == [9, 10]
    assert (run / "begun-anew-1").exists() == (left == "no state")


def test_another_batch_counts_the_parents_tokens(folder):
    done = train(folder, "stable", "name=wider", "training.batch=16", "--from", f"{folder / 'runs/stable'}@8")
    assert done.returncode == 0, done.stderr
    run = folder / "runs/wider"
    assert sorted(losses(run)) == [5, 6]
    assert [row["tokens"] for row in metrics(run)] == [10 * STEP, 12 * STEP]
    assert np.isfinite(list(losses(run).values())).all()


def test_another_optimizer_is_refused_and_binds_no_name(folder):
    """Its moments are not the parent's; of the run that was refused nothing is left that the right one would have to be."""
    source = ("name=muon", "--from", f"{folder / 'runs/stable'}@8")
    refused = train(folder, "stable", *source, "training.optimizer.kind=muon")
    assert refused.returncode == 2 and "its state is of the optimizer adamw, not muon" in refused.stderr
    assert not (folder / "runs/muon/parent.json").exists()
    done = train(folder, "stable", *source, "training.optimizer.kind=adamw")
    assert done.returncode == 0, done.stderr


def test_a_branch_leaves_out_what_its_parent_left_out(folder):
    """Of a parent that rewound, the child trains on what the parent continued with; cut off before its state, it is taken up."""
    runs = folder / "rewound"
    parent = Path(shutil.copytree(folder / "runs/stable", runs / "stable"))
    shutil.rmtree(parent / "checkpoints/step-0000000012")
    rewind = {"step": 4, "failed_step": 6, "first_batch": 4, "last_batch": 5, "reason": "a spike"}
    (parent / "rewinds.json").write_text(json.dumps({"rewinds": [rewind]}))
    done = train(folder, "stable", f"out={runs}")
    assert done.returncode == 0, done.stderr
    wanted = {step: loss for step, loss in losses(parent).items() if step > 8}
    for _ in range(2):
        child = train(folder, "stable", f"out={runs}", "name=heir", "--from", f"{parent}@8")
        assert child.returncode == 0, child.stderr
        assert losses(runs / "heir") == wanted != {s: n for s, n in losses(folder / "runs/stable").items() if s > 8}
        assert json.loads((runs / "heir/parent.json").read_text())["skipped_samples"] == [[4 * 8, 6 * 8 - 1]]
        shutil.rmtree(runs / "heir/checkpoints")
    other = train(folder, "stable", f"out={runs}", "name=stranger", "seed=4", "--from", f"{parent}@8")
    assert other.returncode == 0, other.stderr  # its samples have other numbers
    known = json.loads((runs / "stranger/parent.json").read_text())
    assert known["skipped_samples"] == [] and known["same_samples"] is False
    own = train(
        folder,
        "stable",
        f"out={runs}",
        "name=own",
        "seed=4",
        "--from",
        f"{runs / 'stranger'}@12",
        "training.tokens=4096",
    )
    assert own.returncode == 0, own.stderr  # its parent's samples have its numbers, and theirs before have not
    assert json.loads((runs / "own/parent.json").read_text())["same_samples"] is False


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["name=a", "--from", "RUNS/stable@5"], "has no checkpoint of step 5"),
        (["name=b", "--from", "RUNS/stable@12"], "raise it"),
        (["name=c", "--from", "RUNS/stable@x"], "RUN or RUN@STEP"),
        (["name=d", "--from", "RUNS/nothing"], "has no config.yaml"),
        (["name=h", "model.attention.sinks=true", "--from", "RUNS/stable@8"], "give model.attention.sinks=False"),
        (
            ["name=e", "model.width=32", "model.ffn=48", "--from", "RUNS/stable@8"],
            "another shape; give model.width=16 model.ffn=24",
        ),
        (
            ["name=f", "training.batch=24", "training.micro_batch=4", "--from", "RUNS/stable@8"],
            "not a whole number of steps",
        ),
        (["name=stable", "--from", "RUNS/stable@8"], "choose another name"),
    ],
)
def test_what_cannot_be_branched_is_one_line(folder, more, message):
    done = train(folder, "stable", *[word.replace("RUNS", str(folder / "runs")) for word in more])
    lines = [line for line in done.stderr.splitlines() if line.startswith("emergence-train:")]
    assert done.returncode == 2 and len(lines) == 1 and message in lines[0], done.stderr


def test_a_name_is_free_after_a_parent_of_another_shape(folder):
    wrong = train(folder, "stable", "name=g", "model.ffn=48", "--from", f"{folder / 'runs/stable'}@8")
    assert wrong.returncode == 2, wrong.stderr
    right = train(folder, "stable", "name=g", "--from", f"{folder / 'runs/stable'}@8")
    assert right.returncode == 0, right.stderr


def test_a_finished_constant_run_is_extended(folder):
    first = train(folder, "stable", "name=short", "training.tokens=2048")  # 8 steps
    assert first.returncode == 0, first.stderr
    longer = train(folder, "stable", "name=short")
    assert longer.returncode == 0 and "extended from 2,048 to 3,072 tokens" in longer.stdout + longer.stderr
    assert losses(folder / "runs/short") == losses(folder / "runs/stable")


def test_a_run_whose_rate_has_fallen_is_not_extended(folder):
    first = train(folder, "decayed", "name=fallen", "training.tokens=2048")
    assert first.returncode == 0, first.stderr
    before = losses(folder / "runs/fallen")
    longer = train(folder, "decayed", "name=fallen")
    assert longer.returncode == 2 and "--from" in longer.stderr and losses(folder / "runs/fallen") == before
