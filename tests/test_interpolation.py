"""Names that follow from the configuration, and where marks are replaced."""

import pytest

from emergence_train import config
from emergence_train.errors import InputError
from emergence_train.interpolation import automatic_name


def test_marks_are_replaced_by_values_and_variables(config_file, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    over = [
        "name=lr-${training.schedule.lr}-${data.sources.1.domain}-${training.zero_stage}",
        "training.schedule.lr=3e-4",
    ]
    assert config.load(config_file, over).name == "lr-0.0003-speeches-1"
    assert config.load(config_file, ["name=x-${WANDB_RUN_ID}"]).name == "x-abc"
    loaded = config.load(
        config_file, ["out=/tmp/${seed}", "logging.wandb.tags=['${model.width}', b]", "logging.wandb.notes=${seed}"]
    )
    assert (loaded.out, loaded.logging.wandb.tags, loaded.logging.wandb.notes) == ("/tmp/3", ["16", "b"], "3")


def test_other_places_keep_their_signs(config_file):
    loaded = config.load(config_file, ["samples={prompts: ['echo ${HOME}']}", "name=auto"])
    assert loaded.samples.prompts == ["echo ${HOME}"]


@pytest.mark.parametrize(
    ("overrides", "trial", "name"),
    [
        ([], None, "mine"),
        (["seed=2", "training.schedule.lr=0.01"], None, "mine-seed2-lr0.01"),
        (["training.schedule.lr=0.01", "seed=2"], None, "mine-seed2-lr0.01"),
        (["name=auto", "out=x", "data.path=y", "logging.wandb.group=z"], "t7", "mine-t7"),
        (["data.sources=[{a: b}]"], None, "mine-sources-a-b"),
    ],
    ids=["nothing", "two", "another order", "no other run", "odd signs"],
)
def test_an_automatic_name_follows_from_the_command(overrides, trial, name):
    assert automatic_name("mine", overrides, trial) == name


def test_what_is_not_there_is_one_line(config_file, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(InputError, match="no variable NOWHERE; set it"):
        config.load(config_file, ["name=a-${NOWHERE}"])
    for key in ("training.lr", "training", "data.sources.9.domain", "model.vocab_size"):
        with pytest.raises(InputError, match="has no value .*; give a key"):
            config.load(config_file, [f"name=a-${{{key}}}"])
    with pytest.raises(InputError, match="training.zero_stag: unknown key"):
        config.load(config_file, ["name=auto", "training.zero_stag=1"])
