"""Models of transformers, made here and saved, are imported: their own logits, and losses by a plain loop, are the oracle."""

import contextlib
import json
import math
import shutil
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from emergence_train import config as configs
from emergence_train import files
from emergence_train.analysis.emergence import investigate as investigate_emergence
from emergence_train.analysis.temporal import investigate
from emergence_train.checkpoint import format as checkpoints
from emergence_train.checkpoint.shards import read_weights
from emergence_train.convert import hf_import, hf_source
from emergence_train.convert.hf_export import export
from emergence_train.convert.hf_import import ImportOptions, import_hf
from emergence_train.data.dataset import Dataset
from emergence_train.errors import InputError, RunError
from emergence_train.evaluation.generation import generate
from emergence_train.evaluation.offline import evaluate
from emergence_train.evaluation.saved_model import load_model
from emergence_train.models.hf_config import stored_tensors
from emergence_train.parallel.ranks import start
from emergence_train.recorder import tables
from emergence_train.training.run import train
from foreign_models import BUFFERED, CACHELESS, CONSTANT, ENCODERS, LLAMA, MODELS, SSM, saved

transformers = pytest.importorskip("transformers")


def imported(paths, run, config_file, **options):
    """An import on the small configuration's data, whose tokenizer is that of the model."""
    given = ImportOptions(**{"texts": [str(config_file)]} | options)
    return import_hf([str(path) for path in paths], run, given, lambda line: None)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.slow] * (kind in ("mistral", "qwen2", "glm4_moe")))
        for kind in MODELS
        if kind not in ENCODERS | CACHELESS | {"gemma4_text"}  # which has a look-up table in each layer
    ],
)
def test_import_has_the_same_logits_and_losses(kind, tmp_path, data_path, config_file):
    theirs = saved(tmp_path / "hf", data_path, kind)
    run = imported([tmp_path / "hf"], tmp_path / "run", config_file, steps=[3], tokens_per_step=100)
    config = configs.load_run(run)
    ours = load_model(config.model, checkpoints.newest(run)).eval()
    assert type(ours) is MODELS[kind][2]
    tokens = torch.randint(0, 320, (3, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (ours(tokens) - theirs(tokens).logits).abs().max() < 1e-5
    table = tables.read(tables.POSITIONS, run)
    wanted = losses_by_position(theirs, Dataset(config.data, config.seed), "iid")
    got = table[table["split"] == "iid"]
    np.testing.assert_allclose(got["loss_sum"], [sum(losses) for losses in wanted], rtol=1e-5)
    np.testing.assert_allclose(got["loss_sq_sum"], [sum(x * x for x in losses) for losses in wanted], rtol=1e-5)
    assert got["position"].tolist() == list(range(1, 33)) and set(got["count"]) == {12}
    assert set(table["tokens"]) == {300} and set(table["split"]) == {"iid", "ood", "manuals", "speeches"}
    head = {id(p) for p in theirs.get_output_embeddings().parameters()}
    head |= {id(p) for p in theirs.get_input_embeddings().parameters()}
    assert set(table["params"]) == {sum(p.numel() for p in theirs.parameters() if id(p) not in head)}
    assert config.model.parameters() == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("kind", BUFFERED)
def test_an_export_has_the_buffers_of_the_original(kind, tmp_path, data_path, config_file):
    """Also in bfloat16, in which they stay what they are; logits equal the original's, to which the export is compared."""
    theirs = saved(tmp_path / "hf", data_path, kind)
    buffers = {name: value for name, value in theirs.named_buffers() if name in theirs.state_dict()}
    assert buffers
    run = imported([tmp_path / "hf"], tmp_path / "run", config_file)
    compared = export(run, None, tmp_path / "out", print).logits
    assert compared.reference == "original" and compared.max_difference < 1e-5 < compared.scale
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ids = torch.randint(0, 320, (2, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (again(ids).logits - theirs(ids).logits).abs().max() < 1e-5
    export(run, None, tmp_path / "half", print, dtype="bf16")
    written = load_file(tmp_path / "half" / "model.safetensors")
    for name, value in buffers.items():
        assert torch.equal(written[name], value), name


def test_buffers_of_integers_are_read_back(tmp_path, data_path, config_file, monkeypatch):
    """As in DeepSeek-V4, which looks up experts by token."""
    forward, init = transformers.GPTNeoXForCausalLM.forward, transformers.GPTNeoXForCausalLM.__init__

    def with_table(self, config):
        init(self, config)
        self.table = torch.nn.Buffer(torch.zeros(config.vocab_size, dtype=torch.long))

    def looked_up(self, input_ids, **settings):
        return forward(self, self.table[input_ids], **settings)

    monkeypatch.setattr(transformers.GPTNeoXForCausalLM, "__init__", with_table)
    monkeypatch.setattr(transformers.GPTNeoXForCausalLM, "forward", looked_up)
    theirs = saved(tmp_path / "hf", data_path, "gpt-neox")
    run = imported([tmp_path / "hf"], tmp_path / "run", config_file)
    ours = load_model(configs.load_run(run).model, checkpoints.newest(run))
    assert torch.equal(ours.model.table, theirs.table) and ours.model.table.dtype == torch.int64
    assert export(run, None, tmp_path / "out", print, dtype="bf16").logits.reference == "original"
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["table"], theirs.table)


def test_an_import_that_computes_another_model_is_refused(tmp_path, data_path, config_file, monkeypatch):
    """Whatever was lost: a norm's weights here. Without its buffers, as was written before, it is not evaluated or exported."""
    saved(tmp_path / "hf", data_path, "deepseek_v3")

    def others(model):
        return {name: tensor + name.endswith("norm.weight") for name, tensor in stored_tensors(model).items()}

    run = tmp_path / "run"

    def not_finite(*given):
        model = load_model(*given)
        model.stored_tensors()["model.model.norm.weight"].data.fill_(torch.nan)
        return model

    with monkeypatch.context() as patch:
        patch.setattr(hf_import, "load_model", not_finite)
        with pytest.raises(RunError, match="is another model once imported: .* by nan"):
            imported([tmp_path / "hf"], run, config_file)
    with monkeypatch.context() as patch:
        patch.setattr(hf_import, "stored_tensors", others)
        with pytest.raises(
            RunError, match="hf: is another model once imported: its logits differ from the original's by"
        ):
            imported([tmp_path / "hf"], run, config_file)
        assert not run.exists()
        patch.setattr(hf_import, "stored_tensors", lambda model: dict(model.named_parameters()))
        patch.setattr(hf_import, "original_logits", lambda *_: None)
        patch.setattr(hf_import, "_measure", lambda *_: None)
        imported([tmp_path / "hf"], run, config_file)
    for command in (lambda: evaluate(run, log=print), lambda: export(run, None, tmp_path / "out", print)):
        with pytest.raises(InputError, match=r"without the buffers of its model \(model.*correction_bias; 1 missing\)"):
            command()
    other = imported([tmp_path / "hf"], tmp_path / "other", config_file)
    assert evaluate(other, log=print)["loss"] and export(other, None, tmp_path / "out", print)


@pytest.mark.parametrize("kind", CONSTANT)
def test_an_import_without_constants_is_the_same_model(kind, tmp_path, data_path, config_file, monkeypatch):
    """As imports were written before buffers were kept: losses and export equal those of one that has them."""
    theirs = saved(tmp_path / "hf", data_path, kind)
    whole = imported([tmp_path / "hf"], tmp_path / "whole", config_file)
    with monkeypatch.context() as patch:
        patch.setattr(hf_import, "stored_tensors", lambda model: dict(model.named_parameters()))
        before = imported([tmp_path / "hf"], tmp_path / "before", config_file)
    assert len(read_weights(checkpoints.newest(before))) < len(read_weights(checkpoints.newest(whole)))
    assert evaluate(before, log=print)["loss"] == evaluate(whole, log=print)["loss"]
    assert export(before, None, tmp_path / "out", print).logits.max_difference < 1e-5
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ids = torch.randint(0, 320, (2, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (again(ids).logits - theirs(ids).logits).abs().max() < 1e-5


def test_one_short_text_is_enough(tmp_path, data_path, monkeypatch, capsys):
    """None of it is for training; tasks are scored from another directory, and a file of the run is found there."""
    saved(tmp_path / "hf", data_path, "llama")
    (tmp_path / "x.txt").write_text("Some words of a text that is short and about nothing at all. " * 9)
    monkeypatch.chdir(tmp_path)
    texts = {"texts": ["x.txt"], "tokens_per_step": 10}
    run = import_hf(["hf"], tmp_path / "runs" / "r", ImportOptions(**texts), lambda line: None)
    table = tables.read(tables.POSITIONS, run)
    assert set(table["split"]) == {"iid"} and table["count"].gt(0).all()
    (tmp_path / "items.jsonl").write_text('{"context": "a", "choices": [" b", " c"], "answer": 0}\n')
    content = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(content.replace("tasks: []", "tasks: [{task: mine, file: items.jsonl}]"))
    monkeypatch.chdir("/")
    rows = evaluate(run, tasks=["mine"], log=lambda line: None)["tasks"]
    assert {row["task"] for row in rows} == {"mine"} and rows[0]["items"] == 1
    with pytest.raises(InputError, match="a domain 'text'|a source has .* tokens, fewer than one sequence"):
        Dataset(configs.load_run(run).data, 0).sampler  # noqa: B018
    (tmp_path / "x.txt").write_text("Too short.")
    with pytest.raises(InputError, match="has no 65 tokens, which one sequence takes; give longer text, or a shorter"):
        import_hf(
            [str(tmp_path / "hf")], tmp_path / "s", ImportOptions(texts=[str(tmp_path / "x.txt")]), lambda line: None
        )


def losses_by_position(model, dataset, split: str) -> list[list[float]]:
    """-log p of each target, one sequence and one position at a time, in float64 from the model's logits."""
    losses: list[list[float]] = [[] for _ in range(dataset.sequence)]
    for segment in dataset.segments():
        for row in range(segment.begin, segment.end) if split in segment.splits else ():
            ids = [int(token) for token in dataset.windows[segment.domain][row]]
            with torch.no_grad():
                logits = model(torch.tensor([ids[:-1]])).logits[0].double().numpy()
            for position, target in enumerate(ids[1:]):
                at = logits[position]
                losses[position].append(math.log(sum(math.exp(x - at.max()) for x in at)) + at.max() - at[target])
    return losses


@pytest.mark.parametrize("kind", sorted(ENCODERS))
def test_an_encoder_is_refused_in_one_line(kind, tmp_path, data_path, config_file):
    """Its logits of the first tokens are others where the last ones are."""
    theirs = saved(tmp_path / "hf", data_path, kind)
    ids = torch.arange(1, 21)[None]
    with torch.no_grad():
        first, second = (theirs(torch.cat([ids, ids[:, :5] + k], 1)).logits[:, :20] for k in (0, 5))
    assert (first - second).abs().max() > 1e-3
    with pytest.raises(InputError, match="hf: its logits change with tokens that come later, as an encoder's do"):
        imported([tmp_path / "hf"], tmp_path / "run", config_file)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", sorted(CACHELESS))
def test_generation_without_their_cache_is_of_the_whole_text(kind, tmp_path, data_path, config_file):
    theirs, lines = saved(tmp_path / "hf", data_path, kind), []
    run = import_hf([str(tmp_path / "hf")], tmp_path / "run", ImportOptions(texts=[str(config_file)]), lines.append)
    assert sum("generation computes the whole text each time" in line for line in lines) == 1
    import_hf([str(tmp_path / "hf")], run, ImportOptions(), lines.append)
    assert lines[-2] == "step 1: is imported already"
    config = configs.load_run(run)
    ours = load_model(config.model, checkpoints.newest(run), config.imported).eval()
    ids, cache = torch.tensor([[5, 9, 33, 200, 7, 8, 300, 17]]), ours.new_cache()
    with torch.no_grad():
        for begin, end in ((0, 5), (5, 6), (6, 7), (7, 8)):
            got = ours(ids[:, begin:end], cache=cache)
            assert (got - theirs(ids[:, :end], use_cache=False).logits[:, -1]).abs().max() < 1e-5
    assert export(run, None, tmp_path / "out", lambda line: None).logits.max_difference < 1e-5
    assert (
        hf_source.plain(transformers.AutoConfig.from_pretrained(tmp_path / "out")).items()
        >= {
            name: value for name, value in config.model.transformers.items() if name in SSM | {"time_step_limit": 0}
        }.items()
    )


def test_revisions_are_steps_that_the_analyses_read(tmp_path, data_path, config_file):
    """Directories named after steps, some at first and more later; tasks of each; both analyses take the run."""
    for step in (5, 10, 20):
        saved(tmp_path / "series" / f"checkpoint-{step}", data_path, "llama", seed=step)
    first, run = tmp_path / "series" / "checkpoint-10", tmp_path / "run"
    imported([first], run, config_file, tokens_per_step=1000, tasks=["copying"])
    lines = []
    import_hf([str(tmp_path / "series")], run, ImportOptions(), lines.append)
    assert "step 10: is imported already" in lines
    table = tables.read(tables.POSITIONS, run)
    assert sorted(set(zip(table["step"], table["tokens"]))) == [(5, 5000), (10, 10_000), (20, 20_000)]
    scores = tables.read(tables.EVALUATIONS, run)
    assert sorted(set(scores["step"])) == [5, 10, 20] and set(scores["task"]) == {"copying"}
    means = tables.mean_loss(table[table["split"] == "iid"]).set_index("step")["loss"]
    for step, loss in scores.groupby("step")["loss"].first().items():
        assert loss == pytest.approx(means[step], rel=1e-12)
    assert evaluate(run, 5, log=lambda line: None)["loss"]["iid"] == pytest.approx(means[5], rel=1e-6)
    assert investigate([run], splits=["iid"]).result.runs[0].run == "run"
    assert len(investigate_emergence([run]).result.tasks) == len(set(scores["metric"]))


def scored_on_items(tmp_path, data_path, config_file):
    """Import step 5 of 5 and 10 as `run`, scored on a file of one item; returns the file and the item."""
    for step in (5, 10):
        saved(tmp_path / f"checkpoint-{step}", data_path, "llama", seed=step)
    path, item = tmp_path / "items.jsonl", {"context": "one", "choices": [" two", " three"], "answer": 0}
    path.write_text(json.dumps(item))
    imported([tmp_path / "checkpoint-5"], tmp_path / "run", config_file, tasks=[f"mine={path}"])
    return path, item


def test_a_later_step_is_not_scored_on_other_items(tmp_path, data_path, config_file):
    """The file of a task was edited after the first steps were imported: refused, and the run is left as it was."""
    path, item = scored_on_items(tmp_path, data_path, config_file)
    run = tmp_path / "run"
    path.write_text(json.dumps(item | {"answer": 1}))
    later, settings = [str(tmp_path / "checkpoint-10")], (run / "config.yaml").read_bytes()
    with pytest.raises(InputError, match="has scores of 'mine' on other items than .* holds now.*--tasks mine-2="):
        import_hf(later, run, ImportOptions(), lambda line: None)
    assert (run / "config.yaml").read_bytes() == settings
    import_hf([str(tmp_path / "checkpoint-5")], run, ImportOptions(), lambda line: None)  # nothing is left to score
    import_hf(later, run, ImportOptions(tasks=[f"mine-2={path}"]), lambda line: None)
    scores = tables.read(tables.EVALUATIONS, run)
    assert set(zip(scores["step"], scores["task"])) == {(5, "mine"), (10, "mine-2")}


def test_an_import_goes_on_where_old_scores_are_removed(tmp_path, data_path, config_file):
    """The other remedy, as it is typed."""
    _, item = scored_on_items(tmp_path, data_path, config_file)
    run = tmp_path / "run"
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(item | {"answer": 1}))
    options = ImportOptions(tasks=[f"mine={other}"])
    with pytest.raises(InputError) as error:
        import_hf([str(tmp_path / "checkpoint-10")], run, options, lambda line: None)
    says = (
        f"remove its old scores with `emergence-train evaluate {run} --tasks mine={other} --replace`, then import again"
    )
    assert str(error.value).endswith(says)
    evaluate(run, None, [f"mine={other}"], log=lambda line: None, replace=True)
    import_hf([str(tmp_path / "checkpoint-10")], run, options, lambda line: None)
    scores = tables.read(tables.EVALUATIONS, run)
    assert set(scores["step"]) == {5, 10} and scores["task_digest"].nunique() == 1


def test_text_of_ones_own_and_the_precision_of_the_file(tmp_path, data_path):
    """Without a configuration: text files, a sequence as long as the model takes; bfloat16 stays bfloat16."""
    theirs = saved(tmp_path / "hf", data_path, "llama", dtype="bfloat16").bfloat16()
    theirs.save_pretrained(tmp_path / "hf")
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Paragraph {k} of a text of one's own, {k * k} words long." * 3 for k in range(300)))
    run = import_hf(
        [str(tmp_path / "hf")], tmp_path / "run", ImportOptions(texts=[str(text)]), lambda line: None
    )  # its step is 1
    config = configs.load_run(run)
    assert config.data.sequence == 64 and set(tables.read(tables.POSITIONS, run)["split"]) == {"iid"}
    shard = next((run / "checkpoints" / "step-0000000001").glob("*.safetensors"))
    assert shard.stat().st_size < 2.2 * config.model.parameters()
    weights = read_weights(checkpoints.newest(run))
    assert torch.equal(weights["embedding.weight"], theirs.get_input_embeddings().weight.float())


def begins_with(path, token: str) -> int:
    """Let the tokenizer put `token` before every text, as Llama's does; its id."""
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    number = tokenizer.token_to_id(token)
    tokenizer.post_processor = TemplateProcessing(single=f"{token} $A", special_tokens=[(token, number)])
    tokenizer.save(str(path / "tokenizer.json"))
    return number


@pytest.mark.parametrize("kind", ["llama", "gpt-neox"])
def test_sequences_begin_as_the_models_tokenizer_says(kind, tmp_path, data_path, config_file):
    """Losses, branches and generation are those of passes over the token and the sequence."""
    theirs = saved(tmp_path / "hf", data_path, kind)
    begin = begins_with(tmp_path / "hf", "<|endoftext|>")
    lines: list[str] = []
    options = ImportOptions(texts=[str(config_file)])
    run = import_hf([str(tmp_path / "hf")], tmp_path / "run", options, lines.append)
    config = configs.load_run(run)
    assert config.imported.begin_token == begin and any("begins with <|endoftext|>" in line for line in lines)

    def begun(ids):
        return SimpleNamespace(logits=theirs(F.pad(ids, (1, 0), value=begin)).logits[:, 1:])

    dataset = Dataset(config.data, config.seed)
    table = tables.read(tables.POSITIONS, run)
    got = table[table["split"] == "iid"]
    wanted = losses_by_position(begun, dataset, "iid")
    np.testing.assert_allclose(got["loss_sum"], [sum(losses) for losses in wanted], rtol=1e-5)
    bare = losses_by_position(theirs, dataset, "iid")
    assert abs(sum(bare[0]) - sum(wanted[0])) > 0.1  # the token matters

    ours = load_model(config.model, checkpoints.newest(run), config.imported).eval()
    ids = torch.randint(0, 320, (30,), generator=torch.Generator().manual_seed(2))
    branches = torch.tensor([0] * 12 + [1] * 8 + [2] * 10)
    with torch.no_grad():
        assert (ours(ids[None]) - begun(ids[None]).logits).abs().max() < 1e-5
        shared = ours(ids[None], branches_BT=branches[None])[0]
        for branch in (1, 2):
            alone = begun(torch.cat([ids[:12], ids[branches == branch]])[None]).logits[0]
            assert (shared[branches == branch] - alone[12:]).abs().max() < 1e-5
        [text] = generate(ours, [ids[:5].tolist()], 6, lambda ids: False, start(1))
        for _ in range(6):
            ids = torch.cat([ids[:5], torch.tensor(text)])
            assert text[-1] == int(begun(ids[None, :-1]).logits[0, -1].argmax())
            text = text[:-1]


def test_the_token_at_the_beginning_can_be_chosen(tmp_path, data_path, config_file):
    saved(tmp_path / "hf", data_path, "llama")
    begins_with(tmp_path / "hf", "<|endoftext|>")
    run = imported([tmp_path / "hf"], tmp_path / "bare", config_file, begin_token="none")
    assert configs.load_run(run).imported.begin_token is None
    with pytest.raises(InputError, match="--begin-token <s>: the tokenizer has no such token"):
        imported([tmp_path / "hf"], tmp_path / "run", config_file, begin_token="<s>")
    with pytest.raises(InputError, match="takes 63 tokens, not 64; give --sequence 63 or less"):
        imported([tmp_path / "hf"], tmp_path / "run", config_file, sequence=64)


def test_a_refused_import_is_one_line_and_writes_nothing(tmp_path, data_path, config_file, monkeypatch):
    """Each remedy that is named is done, and the import passes."""
    good, other = tmp_path / "good", tmp_path / "step7"
    saved(good, data_path, "llama")
    saved(other, data_path, "llama", num_hidden_layers=1)
    run = tmp_path / "run"

    def refused(paths, says, out=run, **options):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InputError, match=says):
            imported(paths, out, config_file, **options)
        assert sorted(tmp_path.rglob("*")) == before

    monkeypatch.setattr(hf_source, "_hub_is_reachable", lambda: False)
    refused(
        ["some/name@step3"], "some/name@step3: is no directory, and the hub cannot be reached; give a directory that"
    )
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    refused([broken], "cannot read it .*; give a directory that save_pretrained wrote")
    bare = tmp_path / "bare"  # as a Trainer without a tokenizer saves it
    shutil.copytree(good, bare, ignore=shutil.ignore_patterns("*token*"))
    refused([bare], "bare: transformers .* cannot read its tokenizer .*; give one with --tokenizer")
    (tmp_path / "empty").mkdir()
    refused([tmp_path / "empty"], "has no config.json, and no directories named after steps")
    refused([good, other], "good: its name has no step .*; give --steps, one for each model")
    refused([good, other], "--steps 1: give one step for each of the 2 models", steps=[1])
    refused([good, good], "good and .*good have the same step 1; leave one out, or give --steps", steps=[1, 1])
    refused(
        [good, other], "step7: has num_hidden_layers = 1, and .*good 2; .* import this one as another", steps=[1, 2]
    )
    refused([good], "takes 64 tokens, not 65; give --sequence 64 or less", sequence=65)
    small = tmp_path / "small"
    saved(small, data_path, "llama", vocab_size=256)
    refused([small], "its tokenizer has 300 tokens and its embedding 256")
    lacks = tmp_path / "lacks"
    transformers.LlamaModel(transformers.LlamaConfig(**LLAMA)).save_pretrained(lacks)
    (lacks / "tokenizer.json").write_bytes((data_path / "tokenizer.json").read_bytes())
    refused([lacks], "has no weights lm_head.weight")
    encoder = tmp_path / "encoder"
    transformers.ViTConfig(num_hidden_layers=1).save_pretrained(encoder)
    refused([encoder], "is a vit, of which transformers has no causal language model")
    imported([good], run, config_file, sequence=64)
    refused([other], "is an import of another model", steps=[2])
    refused([good], "has its text already; leave --data, --sequence, --tokenizer and --begin-token out", steps=[2])
    import_hf([str(good)], run, ImportOptions(steps=[2]), lambda line: None)
    refused([good], "was imported with --tokens-per-step 0", steps=[3], texts=None, tokens_per_step=5)
    refused([good], "holds files and is no run", out=other)
    with pytest.raises(InputError, match="model: transformers has no model_type"):
        configs.load(config_file, ["model={kind: hf, transformers: {}}"])


def test_of_two_imports_the_second_deletes_nothing(tmp_path, data_path, config_file):
    """The other takes the lock as this one begins, and has written a file."""
    saved(tmp_path / "hf", data_path, "llama")
    run = tmp_path / "run"
    with contextlib.ExitStack() as other:

        def log(line):
            if not run.exists():
                other.enter_context(files.lock(run, busy="busy", other="--out"))
                (run / "tokenizer.json").write_text("of the other")

        with pytest.raises(InputError, match="another process writes it; wait for it"):
            import_hf([str(tmp_path / "hf")], run, ImportOptions(texts=[str(config_file)]), log)
        assert (run / "tokenizer.json").read_text() == "of the other"


@pytest.mark.parametrize("killed", ["prepare", "Dataset", "Evaluator", "_import_steps", "_measure"])
def test_a_killed_import_is_taken_up_by_its_command(killed, tmp_path, data_path, monkeypatch):
    """Wherever it was killed: nothing is deleted then, and the command passes; what was there is a run like any other."""
    saved(tmp_path / "hf", data_path, "llama")
    (tmp_path / "x.txt").write_text("Some words of a text that is short and about nothing at all. " * 9)
    run, options = tmp_path / "run", ImportOptions(texts=[str(tmp_path / "x.txt")])
    with monkeypatch.context() as patch:
        patch.setattr(hf_import, "shutil", SimpleNamespace(rmtree=lambda *_, **__: None))
        patch.setattr(hf_import, killed, Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            import_hf([str(tmp_path / "hf")], run, options, lambda line: None)
    assert (run / "tokenizer.json").is_file()
    given = ImportOptions() if killed == "_measure" else options  # its first checkpoint is there, and with it the text
    import_hf([str(tmp_path / "hf")], run, given, lambda line: None)
    assert set(tables.read(tables.POSITIONS, run)["step"]) == {1}


def test_a_run_begins_from_imported_weights(tmp_path, data_path, config_file):
    """Its first losses are near those of the imported model, and the imported run itself is not trained."""
    saved(tmp_path / "hf", data_path, "llama")
    run = imported([tmp_path / "hf"], tmp_path / "first", config_file, steps=[2], tokens_per_step=256)
    sizes = configs.load_run(run).model.model_dump(mode="json")
    over = [
        f"model={json.dumps(sizes)}",
        "training.tokens=1024",
        "checkpoints.every_tokens=512",
        "training.schedule.lr=1e-6",
    ]
    child = train(configs.load(config_file, over), lambda line: None, parent=f"{run}@2")
    before = tables.mean_loss(tables.read(tables.POSITIONS, run)).set_index("split")["loss"]
    after = tables.mean_loss(tables.read(tables.POSITIONS, child)).set_index("split")["loss"]
    assert after["iid"] == pytest.approx(before["iid"], abs=1e-3)
    with pytest.raises(InputError, match="is an imported run, which is not trained on; begin another from it"):
        train(configs.load_run(run), lambda line: None)
    with pytest.raises(InputError, match="and is not trained; set model.kind to decoder"):
        train(configs.load(config_file, ["model={kind: hf, transformers: {model_type: gpt2}}"]), lambda line: None)
