"""Directories of models as they are met: other dtypes, links, damage; safetensors' own reading of the files is the oracle."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from emergence_train import config as configs
from emergence_train.checkpoint import format as checkpoints
from emergence_train.checkpoint.shards import read_weights
from emergence_train.convert import hf_import, hf_source
from emergence_train.convert.hf_import import ImportOptions, import_hf
from emergence_train.convert.hf_names import hf_weights
from emergence_train.errors import InputError, RunError
from foreign_models import saved

transformers = pytest.importorskip("transformers")


def changed(folder, weights=None, **settings) -> None:
    """Another file of weights, other settings in config.json (None: left out)."""
    if weights is not None:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    content = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.mark.parametrize("case", ["float32, config bfloat16", "float32, config float16", "mixed", "float16"])
def test_weights_keep_the_precision_of_their_file(case, tmp_path, data_path, config_file):
    """Every value to the last bit, whatever config.json says, and in no more bytes: 16 bits where the file has them."""
    saved(tmp_path / "hf", data_path, "llama")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    if case == "mixed":
        weights = {name: w if "norm" in name else w.bfloat16() for name, w in weights.items()}
        changed(tmp_path / "hf", weights, dtype=None)
    elif case == "float16":
        weights = {name: w.half() for name, w in weights.items()}
        changed(tmp_path / "hf", weights, dtype="float16")
    else:
        old = "float16" in case
        changed(tmp_path / "hf", dtype=None if old else "bfloat16", torch_dtype="float16" if old else None)
    options = ImportOptions(texts=[str(config_file)])
    run = import_hf([str(tmp_path / "hf")], tmp_path / "run", options, lambda line: None)
    checkpoint = checkpoints.newest(run)
    imported = hf_weights(read_weights(checkpoint), configs.load_run(run).model)
    assert imported.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(imported[name], weight.float()), name
    with safe_open(checkpoint / checkpoints.shard_name(0, 1), "pt") as shard:
        held = {key: shard.get_slice(key).get_dtype() for key in shard.keys() if "|" in key}  # noqa: SIM118 - not a dict
    wide = {key for key, dtype in held.items() if dtype == "F32"}
    assert wide == {key for key in held if case != "float16" and (case != "mixed" or "norm" in key)}


def test_an_import_of_rounded_weights_is_refused(tmp_path, data_path, config_file, monkeypatch):
    """The comparison with the original, in the precision of its file, sees bfloat16."""
    saved(tmp_path / "hf", data_path, "llama")
    monkeypatch.setattr(hf_import, "_narrowest", lambda weight: weight.bfloat16())
    with pytest.raises(RunError, match="hf: is another model once imported: its logits differ from the original's by"):
        import_hf([str(tmp_path / "hf")], tmp_path / "run", ImportOptions(texts=[str(config_file)]), lambda line: None)


def logged(models, steps=None):
    lines: list[str] = []
    return hf_import._by_step(hf_source.sources_of([str(path) for path in models], lines.append), steps), lines


def test_a_link_has_the_step_of_its_own_name(tmp_path, monkeypatch):
    """And that of its target where its own has none, but `latest` is no second of its step; what has no step is named."""
    for name in ("store/checkpoint-7", "store/blob", "store/checkpoint-9", "series/last"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    for name, target in (("step1000", "checkpoint-7"), ("step200", "blob"), ("best", "checkpoint-9")):
        (tmp_path / "series" / name).symlink_to(tmp_path / "store" / target)
    (tmp_path / "series" / "step300").mkdir()
    shutil.copy(tmp_path / "store" / "blob" / "config.json", tmp_path / "series" / "step300")
    (tmp_path / "series" / "latest").symlink_to("step300")
    by_step, lines = logged([tmp_path / "series"])
    names = {step: os.path.basename(source.name) for step, source in by_step.items()}
    assert names == {9: "best", 200: "step200", 300: "step300", 1000: "step1000"}
    assert [line.partition(": ")[2][:11] for line in lines] == ["is left out"] and "last: " in lines[0]
    monkeypatch.chdir(tmp_path / "store" / "checkpoint-7")
    assert list(logged(["."])[0]) == [7]
    for name in ("series/checkpoint-200", "series/step200-ema"):
        shutil.copytree(tmp_path / "store" / "blob", tmp_path / name)
    with pytest.raises(InputError, match="step200 and .*checkpoint-200 have the same step 200; leave one out, or give"):
        logged([tmp_path / "series"])
    assert list(logged([tmp_path / "series"], [1, 2, 3, 4, 5, 6])[0]) == [1, 2, 3, 4, 5, 6]


@contextlib.contextmanager
def another_user():
    """Root reads all: within, be a user who owns nothing, in the current directory."""
    os.chmod(".", 0o755)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_directory_that_cannot_be_read_is_passed_over(tmp_path, monkeypatch):
    """As lost+found, which every ext4 volume has."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint-100").mkdir()
    (tmp_path / "checkpoint-100" / "config.json").write_text("{}")
    (tmp_path / "lost+found").mkdir(mode=0o000)
    with another_user():
        assert list(logged(["."])[0]) == [100]


@pytest.mark.parametrize("name", ["notes.txt", "model.safetensors"])
def test_a_file_that_cannot_be_read_is_named_if_it_is_why(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch(mode=0o000)
    reason = "No such file or directory: hf/model.safetensors"  # as safetensors says it
    with another_user():
        if name in reason:
            with pytest.raises(PermissionError, match=name):
                hf_source._damaged(Path("."), reason)
        else:
            assert hf_source._damaged(Path("."), reason) is None


def test_weights_without_a_place_are_named(tmp_path, data_path):
    """A bias that config.json has not; a layer more than it says."""
    theirs = saved(tmp_path / "hf", data_path, "llama")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    lines: list[str] = []
    hf_source.read_model(hf_source.source_of(str(tmp_path / "hf")), lines.append)
    assert lines == []
    changed(tmp_path / "hf", weights | {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}, num_hidden_layers=1)
    model = hf_source.read_model(hf_source.source_of(str(tmp_path / "hf")), lines.append)
    [line] = lines
    assert "weights model.layers.0.self_attn.q_proj.bias (10 in all) are left out" in line
    assert torch.equal(model.lm_head.weight, theirs.lm_head.weight)


def damage(folder, kind: str) -> str:
    """Do it, and return what is then said."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    if kind in ("truncated", "empty"):
        file.write_bytes(content[: len(content) // 2] if kind == "truncated" else b"")
        return r"model.safetensors: is damaged \(.*\); copy or download it again"
    if kind in ("weights by git-lfs", "tokenizer by git-lfs"):
        name = "tokenizer.json" if "tokenizer" in kind else "model.safetensors"
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n")
        return f"{name}: is a pointer to the file, of git-lfs; run git lfs pull in its directory"
    if kind == "pickle":
        file.unlink()
        torch.save({"a": pytest.raises}, folder / "pytorch_model.bin")
        return r"hf: transformers .* cannot read it \(.*\); give a directory"
    if kind in ("nan", "inf"):
        weights = load_file(file)
        weights["model.norm.weight"][3] = float(kind)
        changed(folder, weights)
        return r"hf: its weights hold NaN or infinity \(model.norm.weight\); give a checkpoint before that"
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(folder)})
    )
    if kind == "adapter alone":
        (folder / "config.json").unlink()
        file.unlink()
    return r"hf: holds an adapter .*; merge it \(peft's merge_and_unload\), and give the directory"


DAMAGES = [
    "truncated",
    "empty",
    "weights by git-lfs",
    "tokenizer by git-lfs",
    "pickle",
    "nan",
    "inf",
    "adapter",
    "adapter alone",
]


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_one_line_before_text_is_prepared(kind, tmp_path, data_path, monkeypatch):
    saved(tmp_path / "hf", data_path, "llama")
    says = damage(tmp_path / "hf", kind)
    (tmp_path / "x.txt").write_text("Some words of a text that is short and about nothing at all. " * 9)
    monkeypatch.setattr(hf_import, "prepare", None)
    options = ImportOptions(texts=[str(tmp_path / "x.txt")])
    with pytest.raises(InputError, match=says) as refused:
        import_hf([str(tmp_path / "hf")], tmp_path / "run", options, lambda line: None)
    assert "\n" not in str(refused.value) and "\x1b" not in str(refused.value)
    assert not (tmp_path / "run").exists()
