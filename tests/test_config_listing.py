"""`config CONFIG`: what it prints is the configuration, with every key described."""

import json

import pytest
import yaml

from emergence_train import cli, config, config_listing
from emergence_train.planning.planner import GPUS
from support import ROOT


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_what_it_prints_is_the_same_configuration(path, tmp_path):
    """Loaded again, it gives the same tree; a file of another kind (of a ladder) is not tried."""
    if "training" not in yaml.safe_load(path.read_text()):
        pytest.skip("no configuration of a run")
    prompts = ", ".join(f"'of {number},  [a: b] #'" for number in range(12))
    over = [
        "logging.wandb.project='yes: #1'",
        "tasks=[{task: copying}, {task: t, file: a b}]",
        f"samples.prompts=[{prompts}]",
    ]
    before = config.load(path, over)
    for width in (60, 80, 200):
        text = config_listing.as_yaml(before, width)
        assert max(map(len, text.splitlines())) <= width
        (tmp_path / "again.yaml").write_text(text)
        assert config.load(tmp_path / "again.yaml") == before


def test_what_is_not_the_default_is_marked(config_file, capsys):
    assert cli.main(["config", str(config_file), "training.zero_stage=2", "faults.spike=log", "--json"]) == 0
    keys = {row["key"]: row for row in json.loads(capsys.readouterr().out)["keys"]}
    assert keys["training.zero_stage"] | {"description": ""} == {
        "key": "training.zero_stage",
        "value": 2,
        "default": 1,
        "changed": True,
        "required": False,
        "description": "",
    }
    assert not keys["faults.spike"]["changed"], "given as it is by default"
    assert not keys["training.optimizer.betas"]["changed"], "a tuple by default, a list in a file"
    assert keys["training.tokens"]["required"] and not keys["training.tokens"]["changed"]
    assert keys["data.sources.1.domain"]["value"] == "speeches" and all(row["description"] for row in keys.values())


def test_items_of_a_list_are_described_once(config_file):
    text = config_listing.as_yaml(config.load(config_file))
    assert text.count("share of training tokens, relative") == 1
    assert "* default 1.0" in text.split("domain: manuals")[1].split("domain: speeches")[0]


def test_the_cost_is_that_of_plan(capsys):
    """With a GPU named, the lines of `plan` as comments: what is printed is still the configuration."""
    path = str(ROOT / "configs" / "temporal-paper-468m.yaml")
    gpus = ["--gpus", "8", "--gpu", "h100-80gb"]
    assert cli.main(["plan", path, *gpus, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert cli.main(["config", path, *gpus, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cost"] == planned
    assert cli.main(["plan", path, *gpus]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert cli.main(["config", path, *gpus]) == 0
    text = capsys.readouterr().out
    assert all(f"\n# {line}\n" in text for line in lines) and f"{planned['gpu_hours']:,.0f} GPU hours" in text
    assert yaml.safe_load(text)["training"]["tokens"]


def test_without_a_gpu_the_command_for_the_cost_is_named(config_file, capsys):
    assert cli.main(["config", str(config_file)]) == 0
    *above, last = capsys.readouterr().out.splitlines()
    assert last == f"# emergence-train plan {config_file} --gpus N --gpu KIND"
    assert all(kind in " ".join(above[-2:]) for kind in GPUS)
