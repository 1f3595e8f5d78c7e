"""An exported checkpoint is loaded by transformers and computes the same logits."""

import json

import pytest
import torch
import yaml

from emergence_train import config, files
from emergence_train.checkpoint import format as checkpoints
from emergence_train.checkpoint.format import STATE, shard_name, step_name
from emergence_train.convert.hf_export import export, export_tokenizer
from emergence_train.errors import InputError
from emergence_train.models.decoder import Decoder
from support import small_config


def saved_run(tmp_path, data_path, model: dict):
    """A run directory with one checkpoint of a freshly initialised model, norms moved away from 1."""
    tree = small_config(data_path, tmp_path)
    tree["model"] |= model | {"vocab_size": 320}
    loaded = config.Config.model_validate(tree)
    decoder = Decoder(loaded.model)
    decoder.init_weights(5)
    torch.manual_seed(0)  # independent of earlier tests
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(4.0) if parameter.ndim > 1 else parameter.add_(0.3 * torch.randn(parameter.shape))
    run = tmp_path / "run"
    path = run / "checkpoints" / step_name(7)
    path.mkdir(parents=True)
    (run / "config.yaml").write_text(loaded.to_yaml())
    named = dict(decoder.named_parameters())
    shard = {f"weights|0|{name}": parameter.detach().flatten() for name, parameter in named.items()}
    entry = checkpoints.write_tensors(path / shard_name(0, 1), shard)
    shapes = {name: list(parameter.shape) for name, parameter in named.items()}
    (path / STATE).write_text(json.dumps({"parameters": shapes, "step": 7}))
    checkpoints.write_manifest(path, 7, [entry, files.describe(path, path / STATE)])
    return run, decoder


@pytest.mark.parametrize(
    ("model", "architecture"),
    [
        ({}, "LlamaForCausalLM"),
        ({"tied": True, "rotary_base": 500.0}, "LlamaForCausalLM"),
        ({"rotary_fraction": 0.5, "heads": 2, "kv_heads": 2}, "Phi3ForCausalLM"),
        ({"rotary_fraction": 0.5, "tied": True, "width": 32, "heads": 4, "kv_heads": 2}, "Phi3ForCausalLM"),
    ],
)
def test_transformers_computes_the_same_logits(tmp_path, data_path, model, architecture):
    """float32, within 1e-5 of logits of order 1; grouped queries, tied and not, the whole head rotated and half of it."""
    transformers = pytest.importorskip("transformers")
    run, decoder = saved_run(tmp_path, data_path, model)
    out = export(run, 7, tmp_path / "hf", lambda line: None)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert type(theirs).__name__ == architecture
    tokens = torch.randint(0, 320, (3, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, got = decoder(tokens), theirs(tokens).logits
    assert wanted.std() > 0.3
    assert (got - wanted).abs().max() < 1e-5
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    text = "We the people, 42."
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text and max(ids) < 300 and theirs.config.eos_token_id == tokenizer.eos_token_id


def test_bfloat16_and_several_files_are_loaded(tmp_path, data_path):
    """The same weights, rounded once; no file beyond its limit unless one weight is."""
    transformers = pytest.importorskip("transformers")
    run, decoder = saved_run(tmp_path, data_path, {})
    out = export(run, 7, tmp_path / "hf", lambda line: None, dtype="bfloat16", file_bytes=4000)
    pieces = sorted(out.glob("model-*.safetensors"))
    assert len(pieces) > 2 and not (out / "model.safetensors").exists()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert theirs.dtype == torch.bfloat16
    rounded = decoder.state_dict()["embedding.weight"].bfloat16()
    assert torch.equal(theirs.get_input_embeddings().weight, rounded)
    tokens = torch.randint(0, 320, (1, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, got = decoder(tokens), theirs(tokens).logits.float()
    assert (got - wanted).abs().max() < 0.05 * wanted.std()


def test_what_cannot_be_exported_is_one_line(tmp_path, data_path):
    run, _ = saved_run(tmp_path, data_path, {})
    with pytest.raises(InputError, match="no checkpoint of step 8; it has states of steps 7"):
        export(run, 8, tmp_path / "a", print)
    with pytest.raises(InputError, match="is not empty"):
        export(run, 7, run, print)
    with pytest.raises(InputError, match="not a run directory"):
        export(tmp_path, None, tmp_path / "b", print)
    with pytest.raises(InputError, match="has no token 1000000, which ended the texts of the run"):
        export_tokenizer(data_path / "tokenizer.json", 1_000_000, tmp_path / "e", 32)
    for setting in ({"softcap": 30.0}, {"sinks": True}, {"bias": "alibi"}):
        other, _ = saved_run(tmp_path / next(iter(setting)), data_path, {"attention": setting})
        with pytest.raises(InputError, match="have no softcap, sinks or ALiBi"):
            export(other, 7, tmp_path / "f", print)
    assert not (tmp_path / "f").exists()
    shard = next((run / "checkpoints").rglob("shard*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match="bytes instead of"):
        export(run, None, tmp_path / "c", print)
    (run / "config.yaml").write_text(yaml.safe_dump({"name": "x"}))
    with pytest.raises(InputError, match="config.yaml"):
        export(run, 7, tmp_path / "d", print)
