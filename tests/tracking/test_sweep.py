"""configs/sweeps/quickstart.yaml as the agent of wandb runs it: its functions make the commands, and it sets the variables."""

import os

import pytest
import yaml

from support import ROOT, command, metrics
from tracking.wandb_file import OfflineRun

TRIALS = ({"training.schedule.lr": 0.004, "seed": 1}, {"training.schedule.lr": 0.02, "seed": 2})


def agents_command(sweep: dict, values: dict) -> list[str]:
    """What the agent starts for a trial (wandb.wandb_agent, Agent._command_run)."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    arguments = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    words = []
    for word in create_sweep_command(list(sweep["command"])):
        macro = word.removeprefix("${").removesuffix("}") if word.startswith("${") else None
        words += arguments[macro] if macro else [word]
    return words


@pytest.mark.slow
def test_every_trial_of_a_sweep_is_a_run_of_its_own(config_file, tmp_path):
    sweep = yaml.safe_load((ROOT / "configs" / "sweeps" / "quickstart.yaml").read_text())
    assert set(TRIALS[0]) == set(sweep["parameters"])
    for number, values in enumerate(TRIALS):
        program, *words = agents_command(sweep, values)
        assert program == "emergence-train" and "configs/quickstart.yaml" in words
        words[words.index("configs/quickstart.yaml")] = str(config_file)
        variables = {"WANDB_RUN_ID": f"trial{number}", "WANDB_SWEEP_ID": "s1", "WANDB_MODE": "offline"}
        variables |= {"WANDB_PROJECT": "sweeps", "WANDB_ENTITY": "me"}
        done = command(*words, "logging.wandb.mode=offline", "training.tokens=1024", **variables)
        assert done.returncode == 0, done.stderr
    names = sorted(os.listdir(tmp_path / "runs"))
    assert names == ["config-seed1-lr0.004-tokens1024-trial0", "config-seed2-lr0.02-tokens1024-trial1"]
    for number, name in enumerate(names):
        run = OfflineRun(tmp_path / "runs" / name)
        assert (run.run.run_id, run.run.project, run.run.entity) == (f"trial{number}", "sweeps", "me")
        assert (run.run.sweep_id, run.run.job_type) == ("s1", "sweep")
        validation = metrics(tmp_path / "runs" / name, "validation")
        assert run.values(sweep["metric"]["name"]) == {row["tokens"]: row["loss"]["iid"] for row in validation}
