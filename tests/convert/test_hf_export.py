"""An exported checkpoint is loaded by transformers and computes the same logits."""

import errno
import gc
import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from emergence_train import cli, config, files
from emergence_train.checkpoint import format as checkpoints
from emergence_train.checkpoint.format import STATE, shard_name, step_name
from emergence_train.convert import hf_export, hf_names, logits
from emergence_train.convert.hf_export import export, export_tokenizer, push
from emergence_train.convert.hf_import import ImportOptions, import_hf
from emergence_train.convert.logits import compare
from emergence_train.errors import InputError, RunError
from emergence_train.models.decoder import Decoder
from emergence_train.recorder import tables
from emergence_train.training.run import train
from foreign_tokenizers import KINDS
from support import small_config


def saved_run(tmp_path, data_path, model: dict, norm: float | None = None):
    """A run directory with one checkpoint of a freshly initialised model, norms moved away from 1, an element to `norm`."""
    tree = small_config(data_path, tmp_path)
    tree["model"] |= model | {"vocab_size": 320}
    loaded = config.Config.model_validate(tree)
    decoder = Decoder(loaded.model)
    decoder.init_weights(5)
    torch.manual_seed(0)  # independent of earlier tests
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(4.0) if parameter.ndim > 1 else parameter.add_(0.3 * torch.randn(parameter.shape))
        if norm is not None:
            decoder.norm.weight[3] = norm
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
        ({"rotary_fraction": 30 / 52, "width": 52, "heads": 1, "kv_heads": 1}, "Phi3ForCausalLM"),
    ],
)
def test_transformers_computes_the_same_logits(tmp_path, data_path, model, architecture):
    """float32, within 1e-5 of logits of order 1; grouped queries, tied and not, the whole head rotated and half of it."""
    transformers = pytest.importorskip("transformers")
    run, decoder = saved_run(tmp_path, data_path, model)
    out = Path(export(run, 7, tmp_path / "hf", lambda line: None).export)
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
    padded = tokenizer([text, "We"], padding=True)
    assert len(padded["input_ids"][1]) == len(ids) and sum(padded["attention_mask"][1]) < len(ids)
    assert theirs.generation_config.pad_token_id == tokenizer.pad_token_id is not None
    assert theirs.config.max_position_embeddings == tokenizer.model_max_length == 32
    assert tokenizer.decode(ids) == text and max(ids) < 300 and theirs.config.eos_token_id == tokenizer.eos_token_id


def test_bfloat16_and_several_files_are_loaded(tmp_path, data_path):
    """The same weights, rounded once; no file beyond its limit unless one weight is."""
    transformers = pytest.importorskip("transformers")
    run, decoder = saved_run(tmp_path, data_path, {})
    out = Path(export(run, 7, tmp_path / "hf", lambda line: None, dtype="bf16", file_bytes=4000).export)
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


def test_rounded_weights_are_freed_before_the_comparison(tmp_path, data_path, monkeypatch):
    """It loads one or two more models."""
    run, _ = saved_run(tmp_path, data_path, {})
    alive = []  # tensors in bfloat16, of other tests too

    def counted(*given):
        tensors = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
        alive.append(sum(tensor.dtype == torch.bfloat16 for tensor in tensors))
        return "not compared"

    counted()

    monkeypatch.setattr(hf_export, "compare", counted)
    export(run, None, tmp_path / "out", print, dtype="bf16")
    assert alive[1] <= alive[0]


def test_what_cannot_be_exported_is_one_line(tmp_path, data_path):
    run, _ = saved_run(tmp_path, data_path, {})
    with pytest.raises(InputError, match="no checkpoint of step 8; it has states of steps 7"):
        export(run, 8, tmp_path / "a", print)
    with pytest.raises(InputError, match="is not an empty directory"):
        export(run, 7, run, print)
    with pytest.raises(InputError, match="has no config.yaml"):
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


def test_a_failed_or_killed_export_can_be_done_again(tmp_path, data_path, monkeypatch):
    """A full disk leaves nothing, a kill what the next export removes; the files are those of an export that nothing hindered."""
    run, _ = saved_run(tmp_path, data_path, {})
    wanted = export(run, 7, tmp_path / "whole", lambda line: None).files
    for out in (tmp_path / "new", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with monkeypatch.context() as patch:
            patch.setattr(hf_export, "_write_weights", Mock(side_effect=RunError("no space left on the disk")))
            with pytest.raises(RunError, match="no space left"):
                export(run, 7, out, print)
            assert not out.exists() or not list(out.iterdir())
            patch.setattr(hf_export, "shutil", SimpleNamespace(rmtree=lambda *_, **__: None))
            with pytest.raises(RunError, match="no space left"):
                export(run, 7, out, print)
            assert list((out / hf_export.UNFINISHED).iterdir())
        assert export(run, 7, out, print).files == wanted
        assert not (out / hf_export.UNFINISHED).exists()


def test_a_tokenizer_that_does_not_fit_is_named_by_its_target(tmp_path, data_path, monkeypatch):
    """The disk that is full is the export's, not the run's."""
    run, _ = saved_run(tmp_path, data_path, {})
    write = Path.write_bytes

    def full(path, data):
        if "tokenizer.json" in path.name and path.is_relative_to(tmp_path / "out"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match=rf"^{tmp_path / 'out'}/\S*tokenizer.json: no space left on the disk"):
        export(run, 7, tmp_path / "out", print)


def test_part_of_an_export_is_taken_for_none(tmp_path, data_path, monkeypatch):
    """Killed between any two of the moves: transformers has no model there, and the next export no empty directory."""
    from transformers import AutoConfig

    run, _ = saved_run(tmp_path, data_path, {})
    number, rename = len(export(run, 7, tmp_path / "whole", lambda line: None).files), Path.rename
    for most in (1, number - 1):
        out, moves = tmp_path / f"killed-{most}", itertools.count()

        def move(path: Path, to: Path, out=out, moves=moves, most=most) -> Path:
            if to.parent == out and next(moves) == most:
                raise KeyboardInterrupt
            return rename(path, to)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", move)
            patch.setattr(hf_export, "shutil", SimpleNamespace(rmtree=lambda *_, **__: None))
            with pytest.raises(KeyboardInterrupt):
                export(run, 7, out, print)
        assert len(list(out.iterdir())) == most + 1
        with pytest.raises((OSError, ValueError)):
            AutoConfig.from_pretrained(out)
        with pytest.raises(InputError, match="holds part of an export that was killed; delete it, or choose another"):
            export(run, 7, out, print)
        shutil.rmtree(out)
        assert len(export(run, 7, out, lambda line: None).files) == number


def test_nobody_is_told_to_delete_a_whole_export(tmp_path, data_path, monkeypatch):
    """Killed after the last move; or another one that moves its files now, or has just ended."""
    run, _ = saved_run(tmp_path, data_path, {})
    out, says = tmp_path / "out", "out: is not an empty directory; choose another one$"
    export(run, 7, out, lambda line: None)
    (out / hf_export.UNFINISHED).mkdir()
    with pytest.raises(InputError, match=says):
        export(run, 7, out, print)
    (out / "config.json").rename(tmp_path / "config.json")
    with files.lock(out / hf_export.UNFINISHED, busy="", other="directory"), pytest.raises(InputError, match=says):
        export(run, 7, out, print)
    for path in sorted(out.iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    read_weights = hf_export.read_weights

    def meanwhile(chosen: Path) -> dict:
        (out / "README.md").touch()
        return read_weights(chosen)

    monkeypatch.setattr(hf_export, "read_weights", meanwhile)
    with pytest.raises(InputError, match=says):
        export(run, 7, out, print)


def test_export_import_export_is_the_same_bit_for_bit(tmp_path, data_path, config_file):
    """Of a Llama, a Phi-3 and a model that transformers runs, in float32 and bfloat16; the card, which has a name, aside."""
    from foreign_models import saved

    pytest.importorskip("transformers")
    for number, (model, dtype) in enumerate([({}, "fp32"), ({"rotary_fraction": 0.5, "tied": True}, "bf16")]):
        run, _ = saved_run(tmp_path / str(number), data_path, model)
        export(run, 7, tmp_path / str(number) / "a", print, dtype=dtype)
    (tmp_path / "2").mkdir()
    saved(tmp_path / "2" / "step3", data_path, "gpt-neox")
    first = [("0", "a", "fp32"), ("1", "a", "bf16"), ("2", "step3", "fp32")]
    for folder, source, dtype in first:
        place, options = tmp_path / folder, ImportOptions(texts=[str(config_file)], steps=[7])
        import_hf([str(place / source)], place / "imported", options, print)
        export(place / "imported", None, place / "b", print, dtype=dtype)
        if source != "a":  # the files of another are not ours; those of its export are
            import_hf([str(place / "b")], place / "again", options, print)
            export(place / "again", 7, place / "a", print, dtype=dtype)
        names = sorted(path.name for path in (place / "a").iterdir())
        assert names == sorted(path.name for path in (place / "b").iterdir()) and "model.safetensors" in names
        for name in set(names) - {"README.md"}:
            assert (place / "a" / name).read_bytes() == (place / "b" / name).read_bytes(), name


BEGINS = {"llama": "LlamaConfig", "mistral": "MistralConfig", "gemma": "GemmaConfig"}


def begin_token_model(path, kind: str):
    """A model of transformers whose tokenizer, as theirs, puts <s> before every text; it ends with one of three tokens."""
    transformers = pytest.importorskip("transformers")
    tokenizer = KINDS["sentencepiece"]()
    begin, end, pad = (tokenizer.token_to_id(name) for name in ("<s>", "</s>", "<pad>"))
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", begin)]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    chat = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=48, **special)
    wrapped.chat_template = chat
    torch.manual_seed(0)
    sizes = dict(
        hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    sizes |= dict(vocab_size=520, max_position_embeddings=64, sliding_window=None, head_dim=8)
    ids = dict(bos_token_id=begin, eos_token_id=[end, 7, 9], pad_token_id=pad)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, BEGINS[kind])(**sizes, **ids))
    model.save_pretrained(path)
    wrapped.save_pretrained(path)
    return ids


@pytest.mark.parametrize("kind", BEGINS)
def test_special_tokens_go_out_as_they_came_in(kind, tmp_path):
    """Begin token, the list of ends, pad and chat template, in ids and files; the export is imported as the original was."""
    transformers = pytest.importorskip("transformers")
    ids = begin_token_model(tmp_path / "hf", kind)
    (tmp_path / "x.txt").write_text("A text of the dog, who was lazy and over 42. " * 40)
    options = ImportOptions(texts=[str(tmp_path / "x.txt")], steps=[1])
    places = [tmp_path / name for name in ("hf", "first", "second")]
    losses = []
    for source, out in zip(places, places[1:]):
        run = import_hf([str(source)], tmp_path / f"run-{out.name}", options, print)
        assert config.load_run(run).imported.begin_token == ids["bos_token_id"]
        losses.append(tables.mean_loss(tables.read(tables.POSITIONS, run))["loss"].tolist())
        export(run, None, out, print)
    assert losses[0] == losses[1]
    theirs, ours = (transformers.AutoTokenizer.from_pretrained(place) for place in places[:2])
    for text in ("The quick", "", "a</s>b <s>", "naïve 42", ("a", "b")):
        pair = text if isinstance(text, tuple) else (text,)
        assert ours(*pair)["input_ids"] == theirs(*pair)["input_ids"], text
    assert ours("The quick")["input_ids"][0] == ids["bos_token_id"] != ids["eos_token_id"][0]
    assert ours.chat_template == theirs.chat_template and ours.model_max_length == 48
    for load in (transformers.AutoConfig, transformers.GenerationConfig):
        loaded = load.from_pretrained(places[1])
        assert {name: getattr(loaded, name) for name in ids} == ids, load
    assert [path.name for path in sorted(places[1].iterdir())] == [path.name for path in sorted(places[2].iterdir())]
    for path in places[1].glob("[!R]*"):
        assert path.read_bytes() == (places[2] / path.name).read_bytes(), path.name


def special_ids(exported) -> list[dict[str, int]]:
    """Of config.json, generation_config.json and the tokenizer's own texts."""
    tokenizer = Tokenizer.from_file(str(exported / "tokenizer.json"))
    read = {name: json.loads((exported / f"{name}.json").read_text()) for name in ("config", "generation_config")}
    texts = json.loads((exported / "tokenizer_config.json").read_text())
    names = ("bos", "eos", "pad")
    by_text = {f"{name}_token_id": tokenizer.token_to_id(texts[f"{name}_token"]) for name in names}
    return [{name: ids[name] for name in by_text} for ids in (read["config"], read["generation_config"], by_text)]


@pytest.mark.parametrize("has_generation_config", [True, False])
@pytest.mark.parametrize("begins", [True, False])
def test_a_given_tokenizer_goes_out_with_its_own_ids(begins, has_generation_config, data_path, tmp_path):
    """Another tokenizer than the model's, with its end, the token 0, before each text or not: the original's ids are not its."""
    begin_token_model(tmp_path / "hf", "llama")
    if not has_generation_config:
        (tmp_path / "hf" / "generation_config.json").unlink()
    given = Tokenizer.from_file(str(data_path / "tokenizer.json"))
    end = given.token_to_id("<|endoftext|>")
    if begins:
        given.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", end)])
    given.save(str(tmp_path / "given.json"))
    (tmp_path / "x.txt").write_text("A text of the dog, who was lazy and over 42. " * 40)
    options = ImportOptions(texts=[str(tmp_path / "x.txt")], tokenizer=str(tmp_path / "given.json"))
    run = import_hf([str(tmp_path / "hf")], tmp_path / "run", options, print)
    export(run, None, tmp_path / "out", print)
    wanted = {"bos_token_id": end, "eos_token_id": end}
    for ids in special_ids(tmp_path / "out"):
        assert ids == wanted | {"pad_token_id": given.token_to_id("<|padding|>") or end}
    assert (given.encode("a dog").ids[0] == end) is begins


@pytest.mark.parametrize("given", ["tokenizer.json alone", "imported before"])
def test_a_begin_token_goes_out_without_the_original_files(given, tmp_path):
    """Where a tokenizer.json was given for the model, and of a run whose import kept no files."""
    transformers = pytest.importorskip("transformers")
    ids = begin_token_model(tmp_path / "hf", "llama")
    (tmp_path / "x.txt").write_text("A text of the dog, who was lazy and over 42. " * 40)
    alone = str(tmp_path / "hf" / "tokenizer.json") if given == "tokenizer.json alone" else None
    options, lines = ImportOptions(texts=[str(tmp_path / "x.txt")], tokenizer=alone), []
    run = import_hf([str(tmp_path / "hf")], tmp_path / "run", options, print)
    if not alone:
        shutil.rmtree(run / hf_export.ORIGINAL_FILES)
    export(run, None, tmp_path / "out", lines.append)
    says = "without its tokenizer's settings; import it again, to the same --out"
    assert any(says in line for line in lines) is not bool(alone)
    theirs, ours = (transformers.AutoTokenizer.from_pretrained(tmp_path / name) for name in ("hf", "out"))
    assert ours("The quick")["input_ids"] == theirs("The quick")["input_ids"] and ours.bos_token == "<s>"
    loaded = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    expected = ids | {"eos_token_id": ids["eos_token_id"][0]}
    assert loaded.eos_token_id == expected["eos_token_id"]
    assert special_ids(tmp_path / "out") == [expected] * 3


@pytest.mark.parametrize("given", [None, "tokenizer.json"])
def test_a_second_import_keeps_the_original_files(given, tmp_path):
    """Of a run whose import kept none: those that a whole import keeps, without the tokenizer's where another was given."""
    begin_token_model(tmp_path / "hf", "llama")
    (tmp_path / "x.txt").write_text("A text of the dog, who was lazy and over 42. " * 40)
    tokenizer = str(tmp_path / "hf" / given) if given else None
    if given:
        shutil.copytree(tmp_path / "hf", tmp_path / "other")
        tokenizer = str(tmp_path / "other" / given)
        other = json.loads(Path(tokenizer).read_text()) | {"normalizer": {"type": "Lowercase"}}
        Path(tokenizer).write_text(json.dumps(other))
    options = ImportOptions(texts=[str(tmp_path / "x.txt")], tokenizer=tokenizer)
    run = import_hf([str(tmp_path / "hf")], tmp_path / "run", options, print)
    original = run / hf_export.ORIGINAL_FILES
    wanted = {path.name: path.read_bytes() for path in original.iterdir()}
    assert ("tokenizer.json" in wanted) is (given is None)
    shutil.rmtree(original)
    import_hf([str(tmp_path / "hf")], run, ImportOptions(), print)
    assert {path.name: path.read_bytes() for path in original.iterdir()} == wanted


def test_the_card_and_the_result_have_what_was_measured(tmp_path, config_file, capsys):
    """Losses, positions and tasks of the exported step, by the run's tables; --json has the files with their checksums."""
    over = ["training.tokens=512", "checkpoints.every_tokens=512", "tasks=[{task: copying, items: 4}]"]
    run = train(config.load(config_file, over), lambda line: None)
    out = tmp_path / "hf"
    assert cli.main(["export", str(run), str(out), "--shard-bytes", "20000", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    positions = tables.read(tables.POSITIONS, run)
    means = tables.mean_loss(positions).set_index("split")["loss"]
    assert result["loss"] == pytest.approx(dict(means)) and result["step"] == 2 and result["tokens"] == 512
    assert {entry["file"]: entry["sha256"] for entry in result["files"]} == {
        path.name: files.sha256(path) for path in out.iterdir()
    }
    assert len(list(out.glob("model-*.safetensors"))) > 1
    assert result["logits"]["max_difference"] < 1e-5 < result["logits"]["scale"] and result["logits"]["tokens"] == 64
    card = (out / "README.md").read_text()
    assert f"differ from the run's by {result['logits']['max_difference']:.2g} at most over 64 tokens" in card
    for split in ("train", "iid", "ood", "manuals", "speeches"):
        assert f"| {split} | {means[split]:.4f} |" in card
    iid = positions[positions["split"] == "iid"].set_index("position")
    for position in (1, 2, 4, 8, 16, 32):
        assert f"| {position} | {iid['loss_sum'][position] / iid['count'][position]:.4f} |" in card
    [accuracy] = tables.read(tables.EVALUATIONS, run).query("metric == 'acc'")["value"]
    assert f"| copying | acc | {accuracy:.4f}" in card and "| manuals | 66.7% |" in card and "cosine, peak 0.01" in card


def test_logits_of_other_weights_differ(tmp_path, data_path):
    """What is recorded with the export is no constant: an exported norm is changed."""
    safetensors = pytest.importorskip("safetensors.torch")
    run, decoder = saved_run(tmp_path, data_path, {})
    exported = export(run, 7, tmp_path / "hf", lambda line: None)
    assert exported.logits is not None and exported.logits.max_difference < 1e-5
    file = tmp_path / "hf" / "model.safetensors"
    weights = safetensors.load_file(file)
    safetensors.save_file(weights | {"model.norm.weight": 1.5 * weights["model.norm.weight"]}, file, {"format": "pt"})
    model, held = config.load_run(run).model, dict(decoder.named_parameters())
    with pytest.raises(RunError, match="step-0000000007: is another model once exported: .* differ from the run's by"):
        compare(model, held, dict.fromkeys(held, torch.float32), checkpoints.newest(run), tmp_path / "hf")


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_an_export_of_another_model_is_refused(dtype, tmp_path, data_path, monkeypatch):
    """The last norm is written an eighth larger, which all three dtypes hold; rounding alone passes."""
    run, _ = saved_run(tmp_path, data_path, {})
    rounding = export(run, 7, tmp_path / "right", print, dtype=dtype).logits
    assert rounding.reference == "run" and (rounding.max_difference > 1e-4) == (dtype != "fp32")
    renamed = hf_export.hf_weights

    def wrong(weights, model):
        return {name: w * 1.125 if name == "model.norm.weight" else w for name, w in renamed(weights, model).items()}

    monkeypatch.setattr(hf_export, "hf_weights", wrong)
    with pytest.raises(RunError, match="is another model once exported: its logits differ from the run's by"):
        export(run, 7, tmp_path / "wrong", print, dtype=dtype)
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(("dtype", "passes"), [("fp32", 2), ("bf16", 3)])
def test_weights_that_are_not_rounded_are_run_once(dtype, passes, tmp_path, data_path, monkeypatch):
    run, _ = saved_run(tmp_path, data_path, {})
    counted = Mock(wraps=logits._logits)
    monkeypatch.setattr(logits, "_logits", counted)
    export(run, 7, tmp_path / "out", print, dtype=dtype)
    assert counted.call_count == passes


def test_an_export_of_another_rotary_dimension_is_refused(tmp_path, data_path, monkeypatch):
    """29 of 52 for 30, which differ by less than a hundredth of the logits' SD in a trained model."""
    rotary = {"rotary_fraction": 30 / 52, "width": 52, "heads": 1, "kv_heads": 1}
    run, _ = saved_run(tmp_path, data_path, rotary)
    monkeypatch.setattr(hf_names, "_rotary_factor", lambda model: 30 / 52)
    with pytest.raises(RunError, match="is another model once exported: its logits differ from the run's by"):
        export(run, 7, tmp_path / "out", print)


def test_weights_that_are_not_finite_are_not_exported(tmp_path, data_path):
    """Neither those of a diverged run, nor those that are infinite in 16 bits alone: the largest float16 is 65504."""
    for number, value in enumerate((1e5, 3.4e38, torch.nan)):
        run, _ = saved_run(tmp_path / str(number), data_path, {}, norm=value)
        out = tmp_path / f"out-{number}"
        with pytest.raises(InputError, match="norm.weight holds") as refused:
            export(run, 7, out, print, dtype="fp16")
        assert not out.exists()
        if value == 1e5:
            assert "holds 1e+05, which is infinite in float16; give --dtype bf16" in str(refused.value)
            export(run, 7, out, print, dtype="bf16")
        elif value > 1e5:
            with pytest.raises(InputError, match="which is infinite in bfloat16; give --dtype fp32"):
                export(run, 7, out, print, dtype="bf16")
        else:
            assert "norm.weight holds NaN or infinity; export an earlier step" in str(refused.value)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_that_transformers_keeps_in_float32(dtype, tmp_path, data_path, config_file, monkeypatch):
    """The file is what transformers makes of the original in 16 bits: some weights stay, some in float16 alone."""
    from foreign_models import saved

    transformers = pytest.importorskip("transformers")
    for name, part in (("_keep_in_fp32_modules_strict", "final_layer_norm"), ("_keep_in_fp32_modules", "mlp")):
        monkeypatch.setattr(transformers.GPTNeoXForCausalLM, name, [part])
    saved(tmp_path / "hf", data_path, "gpt-neox")
    run = import_hf([str(tmp_path / "hf")], tmp_path / "run", ImportOptions(texts=[str(config_file)]), print)
    export(run, None, tmp_path / "out", print, dtype=dtype)
    load = transformers.AutoModelForCausalLM.from_pretrained
    theirs = load(tmp_path / "hf", dtype=getattr(torch, dtype)).state_dict()
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {w.dtype for w in written.values()} == {torch.float32, getattr(torch, dtype)}
    assert written.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert written[name].dtype == weight.dtype and torch.equal(written[name], weight), name


def test_push_uploads_the_directory_or_says_how(tmp_path, data_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    run, _ = saved_run(tmp_path, data_path, {})
    exported = export(run, 7, tmp_path / "hf", print)
    calls = []

    class Hub:
        def create_repo(self, name, **settings):
            calls.append((name, settings))

        def upload_folder(self, repo_id, folder_path, commit_message):
            calls.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert push(exported, "me/model", print).pushed == "https://hub/me/model"
    assert calls[0] == ("me/model", {"private": True, "exist_ok": True}) and "README.md" in calls[1][1]

    class TransportError(Exception):
        """Of the library that the hub's client sends by: no OSError."""

    for error in (OSError, TransportError):

        def offline(*of, error=error, **settings):
            raise error("no network")

        monkeypatch.setattr(Hub, "create_repo", offline)
        with pytest.raises(
            RunError, match="--push me/model: no network; .* is complete: log in .* upload it with hf upload me"
        ):
            push(exported, "me/model", print)
