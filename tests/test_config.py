"""The configuration: overrides, presets, and one line for every mistake."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from emergence_train import config, config_tree
from emergence_train.errors import InputError
from support import small_config


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(small_config(tmp_path / "data", tmp_path / "runs")))
    return path


def test_overrides_presets_and_the_way_back(file):
    loaded = config.load(file, ["training.schedule.lr=3e-4", "model.preset=tiny-0.2m", "data.sources.0.weight=5"])
    assert loaded.training.schedule.lr == 3e-4 and loaded.data.sources[0].weight == 5
    assert loaded.model.width == 16, "keys beside the preset change it"
    assert config.Config.model_validate(yaml.safe_load(loaded.to_yaml())) == loaded


def test_data_of_a_run_are_looked_for_above_it(tmp_path, monkeypatch):
    """A run trained in tmp_path with relative paths, read from elsewhere; what lies here goes first."""
    run, elsewhere = tmp_path / "runs" / "r", tmp_path / "elsewhere"
    for folder in (run, elsewhere, tmp_path / "data" / "d"):
        folder.mkdir(parents=True)
    (tmp_path / "data" / "d" / "dataset.json").touch()
    (tmp_path / "runs" / "data" / "d").mkdir(parents=True)  # nearer, and nothing prepared
    (run / "config.yaml").write_text(yaml.safe_dump(small_config("data/d", "runs")))
    monkeypatch.chdir(elsewhere)
    assert config.load_run(run).data.path == str(tmp_path / "data" / "d")
    (elsewhere / "data" / "d").mkdir(parents=True)
    assert config.load_run(run).data.path == "data/d"
    (elsewhere / "data" / "d").rmdir()
    (tmp_path / "data" / "d" / "dataset.json").unlink()
    assert config.load_run(run).data.path == "data/d"  # nowhere: as it is written


def test_a_file_for_another_command_names_it():
    from support import ROOT

    for file, command in (("ladders/tiny", "emergence-train ladder"), ("grok/tiny", "emergence-train grok")):
        with pytest.raises(InputError, match=f"{file}.yaml: is a .*; give it to `{command}`"):
            config.load(ROOT / "configs" / f"{file}.yaml")
    for file in (ROOT / "configs" / "sweeps").glob("*.yaml"):
        with pytest.raises(InputError, match="is a sweep of W&B; give it to `wandb sweep`"):
            config.load(file)


def test_every_shipped_configuration_loads():
    from support import ROOT

    files = sorted(path for path in (ROOT / "configs").glob("*.yaml"))
    assert files
    for path in files:
        config.load(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.zero_stag=2", "training.zero_stag: unknown key; did you mean 'zero_stage'?"),
        ("modle.width=3", "modle: unknown key; did you mean 'model'?"),
        ("data.sources.0.wieght=1", "did you mean 'weight'?"),
        ("training.batch=many", "training.batch"),
        ("training.batch=0", "training.batch"),
        ("model.heads=3", "width 16 is not a multiple of heads 3"),
        ("model.kv_heads=3", "heads 2 is not a multiple of kv_heads 3"),
        ("model.rotary_fraction=0.1", "rotary_fraction"),
        ("model.preset=300mm", "did you mean '300m'?"),
        ("data.sequence=64", "longer than model.max_sequence"),
        ("training.micro_batch=3", "not a multiple of micro_batch"),
        ("training.schedule.kind=wsd", "needs decay_tokens"),
        ("training.schedule.decay_tokens=9", "is for kind wsd"),
        ("training.schedule.warmup_tokens=99999999", "more than training.tokens"),
        ("training.position_weights.vector=[1,2]", "has 2 entries"),
        ("data.sources.0.domain=iid", "taken by a split"),
        ("data.sources.1.domain=manuals", "is listed twice"),
        ("data.sources.9.domain=x", "is a list of 2"),
        ("data.tokenizer.file=x.json", "exactly one of vocab_size, file and hub"),
        ("name=../up", "name: is no name: give letters of English, digits, '.', '_' and '-'"),
        ("data.sources.0.domain=français", "data.sources.0.domain: is no name: give letters of English"),
        ("seed", "write it as section.key=value"),
        ("name.first=1", "is a value, not a section"),
        ("training.batch=[1", "not valid YAML"),
    ],
)
def test_a_mistake_is_one_line(file, override, message):
    with pytest.raises(InputError) as error:
        config.load(file, [override])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_zero_stage_0_with_bf16_is_refused(file):
    with pytest.raises(InputError, match="0.74 of its size"):
        config.load(file, ["training.zero_stage=0", "training.precision=bf16"])


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "just words", "a: &a [*a]", "\x00"])
def test_what_is_no_configuration_is_refused(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(InputError):
        config.load(path)
    with pytest.raises(InputError, match="no such"):
        config.load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "text, value",
    [("None", None), ("[None, 1]", [None, 1]), ("{'a': None}", {"a": None}), ("'None'", "None"), ("Nones", "Nones")],
)
def test_pythons_none_is_null_in_an_override(file, text, value):
    """As a W&B sweep writes it; a configuration's file keeps the word."""
    tree = {}
    config_tree.apply(tree, f"a.b={text}")
    assert tree == {"a": {"b": value}}
    assert config.load(file, ["checkpoints.local_path=None"]).checkpoints.local_path is None
    (file.parent / "none.yaml").write_text("name: None")
    assert config_tree.read(file.parent / "none.yaml") == {"name": "None"}


@given(st.text(max_size=60))
def test_any_override_loads_or_is_an_input_error(text):
    tree = small_config("data", "runs")
    try:
        config_tree.apply(tree, text)
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "text", ["[" * 50_000, "{a: " * 20_000, "1-02-30", "0b"], ids=["lists", "maps", "date", "binary"]
)
def test_an_override_without_end_or_sense_is_one_short_line(file, text):
    with pytest.raises(InputError) as raised:
        config.load(file, [f"training.tokens={text}"])
    assert len(str(raised.value)) < 1000
