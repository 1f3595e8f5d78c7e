"""Samples of text at checkpoints, and `generate`, which continues the same prompts from a saved state."""

import json
import os

import pytest

from emergence_train import cli
from emergence_train.data.tokenizer import load_file
from emergence_train.errors import InputError
from emergence_train.evaluation.text_samples import TextSamples
from emergence_train.logging_config import Samples
from emergence_train.watch.details import details
from support import command, metrics

PROMPTS = ["The reader", ""]


@pytest.fixture(scope="module")
def run(data_path, tmp_path_factory):
    import yaml

    from support import small_config

    place = tmp_path_factory.mktemp("samples")
    tree = small_config(data_path, place) | {
        "samples": {"prompts": PROMPTS, "tokens": 9, "temperature": 0.7, "seed": 5}
    }
    (place / "config.yaml").write_text(yaml.safe_dump(tree))
    done = command("train", str(place / "config.yaml"))
    assert done.returncode == 0, done.stderr
    assert "sample      step 12  The reader" in done.stdout
    return place / "run"


def test_every_checkpoint_has_its_samples(run):
    rows = metrics(run, "samples")
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert all([sample["prompt"] for sample in row["texts"]] == PROMPTS for row in rows)
    assert rows[0]["texts"] != rows[-1]["texts"], "the weights have moved"
    assert details(run).samples == rows[-1]["texts"]


def test_generate_writes_what_the_checkpoint_wrote(run, capsys):
    """The same weights from the saved state, prompts and seed: the same text as during training."""
    given = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    given += ["--tokens", "9", "--temperature", "0.7", "--seed", "5"]
    done = command("generate", str(run), *given, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["step"] == 12 and result["texts"] == metrics(run, "samples")[-1]["texts"]


def test_wrong_use_is_one_line(run, capsys):
    assert cli.main(["generate", str(run), "--prompt", "x", "--temperature", "-1"]) == 2
    assert "temperature: Input should be greater than or equal to 0 (got -1.0)" in capsys.readouterr().err
    assert cli.main(["generate", str(run), "--prompt", os.fsdecode(b"a\xff")]) == 2
    assert r"the prompt 'a\udcff' is not UTF-8" in capsys.readouterr().err
    tokenizer = load_file(run / "tokenizer.json")
    with pytest.raises(InputError, match="ask for fewer tokens or shorten the prompt"):
        TextSamples(Samples(prompts=["a b c"], tokens=32), tokenizer, 0, 32)
