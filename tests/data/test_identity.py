"""Identity of data and tokenizer: other data are an error of one line, moved data are the same, export needs none."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from emergence_train.convert.hf_export import export
from emergence_train.data import identity
from emergence_train.data.dataset import Dataset
from emergence_train.data.prepare import prepare
from emergence_train.errors import InputError
from support import command, data_of, small_config, tree


@pytest.fixture(scope="module")
def run(data_path, tmp_path_factory) -> tuple[Path, dict]:
    """(folder with config.yaml and runs/run stopped before its end, the configuration); the data are a copy under data/."""
    folder = tmp_path_factory.mktemp("identity")
    shutil.copytree(data_path, folder / "data")
    tree_ = small_config(folder / "data", folder / "runs")
    (folder / "config.yaml").write_text(yaml.safe_dump(tree_))
    done = command("train", str(folder / "config.yaml"))
    assert done.returncode == 0, done.stderr
    return folder, tree_


def other_data(folder: Path) -> None:
    """Other text under the same configuration: another seed of the same vocabulary is not needed, other files are."""
    shutil.rmtree(folder / "data")
    data = data_of(folder / "data")
    swapped = data.model_copy(update={"sources": [*reversed(data.sources)]})
    named = [source.model_copy(update={"sample": other.sample}) for source, other in zip(data.sources, swapped.sources)]
    prepare(data.model_copy(update={"sources": named}), lambda line: None)


def test_a_run_knows_its_data_and_keeps_its_tokenizer(run, data_path):
    folder, _ = run
    directory = folder / "runs" / "run"
    known = json.loads((directory / "data.json").read_text())
    dataset = Dataset(data_of(data_path), seed=0)
    assert known["data"] == identity.digest(dataset.index) and known["vocabulary"] == dataset.fingerprint
    assert (directory / "tokenizer.json").read_bytes() == (data_path / "tokenizer.json").read_bytes()


def test_other_data_are_refused_and_nothing_is_overwritten(run, tmp_path):
    source, _ = run
    folder = Path(shutil.copytree(source, tmp_path / "moved"))
    settings = small_config(folder / "data", folder / "runs")
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    directory = folder / "runs" / "run"
    (directory / "config.yaml").write_text((directory / "config.yaml").read_text().replace(str(source), str(folder)))
    same = command("train", str(folder / "config.yaml"))  # data moved
    assert same.returncode == 0 and "nothing to do" in same.stdout + same.stderr
    before = tree(directory)
    other_data(folder)
    for arguments in (("train", str(folder / "config.yaml")), ("evaluate", str(directory))):
        done = command(*arguments)
        assert done.returncode == 2, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.strip()]
        assert "was trained" in line and str(folder / "data") in line
        assert tree(directory) == before
    out = Path(export(directory, None, tmp_path / "hf", lambda line: None).export)  # with the run's own tokenizer
    assert (out / "tokenizer.json").read_bytes() == (directory / "tokenizer.json").read_bytes()
    shutil.rmtree(folder / "data")
    export(directory, None, tmp_path / "hf2", lambda line: None)


def test_a_run_without_tokenizer_takes_that_of_its_data(run, tmp_path, data_path):
    source, _ = run
    directory = Path(shutil.copytree(source / "runs" / "run", tmp_path / "run"))
    (directory / "tokenizer.json").unlink()
    assert identity.tokenizer_of(directory, data_path)[0] == data_path / "tokenizer.json"
    with pytest.raises(InputError, match="has no tokenizer.json"):
        identity.tokenizer_of(directory, tmp_path / "nowhere")


def test_damaged_data_json_is_an_error(tmp_path):
    (tmp_path / "data.json").write_text("{")
    with pytest.raises(InputError, match=r"data\.json: cannot be read"):
        identity.read(tmp_path)


def test_another_share_of_a_split_is_refused(tmp_path):
    """The same windows on the disk, of which iid takes fewer: its loss would be another under one name. Not known, as in runs of
    before, it is no reason to refuse."""
    validation = {"sequences": 8, "domain_sequences": 8, "ood_sequences": 2, "fraction": 0.2}
    data = data_of(tmp_path / "data", validation=validation)
    prepare(data, lambda line: None)
    before = Dataset(data, seed=0)
    directory = tmp_path / "run"
    directory.mkdir()
    identity.keep(directory, before)
    identity.check(directory, before)
    fewer = data_of(tmp_path / "fewer", validation=validation | {"sequences": 4})
    prepare(fewer, lambda line: None)
    after = Dataset(fewer, seed=0)
    assert identity.digest(after.index) == identity.digest(before.index)
    with pytest.raises(
        InputError, match=r"was validated on iid sequences \d of .*, and .* has iid sequences \d of .*; set data.path"
    ):
        identity.check(directory, after)
    assert identity.check_text(directory, after)  # what reads the training text alone goes on
    known = json.loads((directory / "data.json").read_text())
    (directory / "data.json").write_text(json.dumps({key: known[key] for key in known if key != "splits"}))
    identity.check(directory, after)
