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
from emergence_train.evaluation.scoring import Request, score
from emergence_train.models.begin_token import WithBeginToken
from emergence_train.models.decoder import Decoder
from emergence_train.models.hf_config import HFConfig, stored_tensors
from emergence_train.models.hf_model import HFModel
from emergence_train.parallel.ranks import start
from emergence_train.recorder import tables
from emergence_train.training.run import train

transformers = pytest.importorskip("transformers")

LLAMA = dict(
    hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=320, max_position_embeddings=64, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 5e3},
)  # fmt: skip
NEOX = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=320,
    max_position_embeddings=64, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
)  # fmt: skip
MODELS = {
    "llama": (transformers.LlamaConfig, LLAMA, Decoder),
    "llama-tied": (transformers.LlamaConfig, LLAMA | {"tie_word_embeddings": True}, Decoder),
    "mistral": (transformers.MistralConfig, LLAMA | {"sliding_window": None}, Decoder),
    "mistral-window": (transformers.MistralConfig, LLAMA | {"sliding_window": 8}, HFModel),
    "qwen2": (transformers.Qwen2Config, LLAMA, HFModel),
    "qwen3": (transformers.Qwen3Config, LLAMA | {"head_dim": 16}, HFModel),
    "gpt-neox": (transformers.GPTNeoXConfig, NEOX, HFModel),
}
SMALL = dict.fromkeys(("hidden_size", "d_model", "n_embd"), 32)
SMALL |= dict.fromkeys(("num_hidden_layers", "n_layer", "decoder_layers"), 2) | {"encoder_layers": 1}
SMALL |= dict.fromkeys(("n_head", "num_attention_heads", "decoder_attention_heads", "encoder_attention_heads"), 4)
SMALL |= dict.fromkeys(("d_inner", "intermediate_size", "decoder_ffn_dim", "encoder_ffn_dim"), 40)
SMALL |= {"vocab_size": 320, "max_position_embeddings": 64}
ENCODERS = {"bert", "roberta", "electra", "xlnet"}
CACHELESS = {
    "mamba",
    "mamba2",
    "falcon_mamba",
    "rwkv",
    "openai-gpt",
    "bart",
}  # what transformers' key-value cache is not for
UNNAMED = {"xlnet": "max_position_embeddings", "bart": "num_hidden_layers"}  # names that these do not take
MODELS |= {
    kind: (
        type(transformers.AutoConfig.for_model(kind)),
        {name: size for name, size in SMALL.items() if name != UNNAMED.get(kind)},
        HFModel,
    )
    for kind in ENCODERS | CACHELESS
}


EXPERTS = dict(
    num_key_value_heads=4, n_routed_experts=8, num_experts_per_tok=2, n_group=2, topk_group=1, n_shared_experts=1
)
EXPERTS |= dict(moe_intermediate_size=16, first_k_dense_replace=1)
RANKS = dict(q_lora_rank=16, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8)
PER_LAYER = dict(num_key_value_heads=2, head_dim=8, global_head_dim=8, sliding_window=16)
BUFFERED = {  # what is trained in buffers
    "deepseek_v3": SMALL | EXPERTS | RANKS,
    "glm4_moe": SMALL | EXPERTS | {"head_dim": 8},
    "gemma4_text": SMALL | PER_LAYER | {"vocab_size_per_layer_input": 320, "hidden_size_per_layer_input": 8},
}
MODELS |= {kind: (type(transformers.AutoConfig.for_model(kind)), sizes, HFModel) for kind, sizes in BUFFERED.items()}

# What a class sets itself, in buffers too.
CONSTANT = {
    "apertus": SMALL | {"num_key_value_heads": 4},
    "minimax": SMALL | {"num_key_value_heads": 4, "head_dim": 8, "num_local_experts": 4},
}
MODELS |= {kind: (type(transformers.AutoConfig.for_model(kind)), sizes, HFModel) for kind, sizes in CONSTANT.items()}

SSM = {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 1}  # its time_step_limit is [0, infinity]
MODELS["mamba2"] = transformers.Mamba2Config, SMALL | SSM, HFModel


def saved(path, data_path, kind: str, seed: int = 0, **changes):
    """A model of transformers with weights away from their beginnings, saved with the tokenizer of the data."""
    config_class, sizes, _ = MODELS[kind]
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config_class(**sizes | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0) if parameter.ndim > 1 else parameter.add_(0.3 * torch.randn(parameter.shape))
        for name, buffer in model.named_buffers():
            if name in model.state_dict() and kind not in CONSTANT:
                whole = not buffer.is_floating_point()
                buffer.copy_(torch.randperm(len(buffer)) if whole else buffer + 0.5 * torch.randn(buffer.shape))
    model.save_pretrained(path)
    (path / "tokenizer.json").write_bytes((data_path / "tokenizer.json").read_bytes())
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(content))
    return model.eval()


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


@pytest.mark.parametrize("kind", ["gpt-neox", "mistral-window"])
def test_branches_documents_and_generation_equal_passes(kind, data_path, tmp_path):
    """Each branch sees the prefix and itself, each document itself: as when it is passed alone."""
    theirs = saved(tmp_path / "hf", data_path, kind)
    config = HFConfig(vocab_size=320, max_sequence=64, transformers=theirs.config.to_dict())
    ours = HFModel(config).eval()
    ours.model.load_state_dict(theirs.state_dict())
    ids = torch.randint(0, 320, (30,), generator=torch.Generator().manual_seed(2))
    branches = torch.tensor([0] * 12 + [1] * 8 + [2] * 10)
    with torch.no_grad():
        got = ours(ids[None], branches_BT=branches[None])[0]
        for branch in (1, 2):
            own = branches == branch
            alone = theirs(torch.cat([ids[:12], ids[own]])[None]).logits[0]
            assert (got[own] - alone[12:]).abs().max() < 1e-5
            assert (got[:12] - alone[:12]).abs().max() < 1e-5
        targets = torch.roll(ids, -1)
        split = ours(ids[None], targets[None], document_ids_BT=branches[None])
        for document in range(3):
            own = branches == document
            alone = theirs(ids[own][None]).logits[0]
            wanted = torch.nn.functional.cross_entropy(alone, targets[own], reduction="none")
            assert (split.token_loss[0, own] - wanted).abs().max() < 1e-4
        [text] = generate(ours, [ids[:5].tolist()], 6, lambda ids: False, start(1))
        wanted = ids[:5].tolist()
        for _ in range(6):
            wanted.append(int(theirs(torch.tensor([wanted])).logits[0, -1].argmax()))
    assert text == wanted[5:]


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


PHI3 = LLAMA | {"original_max_position_embeddings": 24, "pad_token_id": 0, "partial_rotary_factor": 0.5}
FACTORS = {"short_factor": [1.0] * 2, "long_factor": [1.0, 8.0], "original_max_position_embeddings": 24}
SCALED = {
    "longrope": (
        transformers.Phi3Config,
        PHI3 | {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e2} | FACTORS},
    ),
    "dynamic": (
        transformers.LlamaConfig,
        LLAMA
        | {
            "max_position_embeddings": 40,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e2, "factor": 4.0},
        },
    ),
}


@pytest.fixture(params=SCALED)
def scaled(request):
    """A model whose frequencies depend on the longest position of a call, ours, and a function: logits of a text passed alone
    to one that has seen none before."""
    config_class, sizes = SCALED[request.param]
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config_class(**sizes)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(8.0) if parameter.ndim > 1 else None
    settings = theirs.config.to_dict()
    ours = HFModel(HFConfig(vocab_size=320, max_sequence=theirs.config.max_position_embeddings, transformers=settings))
    ours.model.load_state_dict(theirs.state_dict())

    @torch.no_grad()
    def alone(ids):
        fresh = transformers.AutoModelForCausalLM.from_config(config_class(**sizes)).eval()
        fresh.load_state_dict(theirs.state_dict())
        return fresh(torch.tensor([ids]), use_cache=False).logits[0]

    return ours.eval(), alone


@pytest.mark.parametrize("begin", [None, 7])
@pytest.mark.parametrize("greedy", [False, True])
def test_a_score_does_not_depend_on_the_batch(scaled, begin, greedy):
    """Beside longer texts, shared prefixes and padding, and after texts of other lengths: as of the text passed alone."""
    ours, alone = scaled
    model, start_ids = (ours, []) if begin is None else (WithBeginToken(ours, begin), [begin])
    longest = ours.config.max_sequence - len(start_ids)
    generator = torch.Generator().manual_seed(3)
    ids = [tuple(torch.randint(1, 320, (n,), generator=generator).tolist()) for n in (longest + 1, 9, 21, 24, 25, 30)]
    prefix = ids[2][:19]
    ids += [prefix + tail for tail in ((5, 6), (7, 8, 9, 10, 11, 12), tuple(range(30, 30 + longest - 18)))]
    requests = [Request(text, 2) for text in ids]
    mesh = start(1)
    together = score(model, requests, mesh, greedy=greedy)[:, 0]
    again = np.concatenate([score(model, [request], mesh, greedy=greedy)[:, 0] for request in requests])
    for text, *got in zip(ids, together, again):
        log_p = alone([*start_ids, *text[:-1]]).double().log_softmax(-1)
        wanted = sum(float(log_p[at, text[at + 1 - len(start_ids)]]) for at in (-2 + len(log_p), -1 + len(log_p)))
        assert got == pytest.approx([wanted] * 2, abs=1e-4), len(text)


@pytest.mark.parametrize("kind", ["qwen3", "deepseek_v3"])
def test_bfloat16_is_as_transformers_loads_it(kind, tmp_path, data_path):
    """Equal bit for bit after moving and casting: rotary frequencies and expert biases are float32 in both."""
    saved(tmp_path / "hf", data_path, kind)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.bfloat16).eval()
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    ours = HFModel(HFConfig(vocab_size=320, max_sequence=64, transformers=hf_source.plain(whole.config)))
    ours.model.load_state_dict(whole.state_dict())
    ours = WithBeginToken(ours, 5).to("cpu").bfloat16().eval()
    for name, tensor in [*theirs.named_parameters(), *theirs.named_buffers()]:
        mine = dict([*ours.model.model.named_parameters(), *ours.model.model.named_buffers()])[name]
        assert mine.dtype == tensor.dtype and torch.equal(mine, tensor), name
    ids = torch.randint(0, 320, (2, 64), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = 5
    with torch.no_grad():
        assert torch.equal(ours(ids[:, 1:]), theirs(ids, use_cache=False).logits[:, 1:])


def test_generation_goes_on_beyond_the_original_length(scaled):
    """Of each token the logits of the whole text before it."""
    ours, alone = scaled
    ids = torch.randint(1, 320, (20,), generator=torch.Generator().manual_seed(4)).tolist()
    [text] = generate(ours, [ids], 12, lambda ids: False, start(1))
    for token in text:
        assert token == int(alone(ids)[-1].argmax())
        ids.append(token)
    assert ours.has_cache


def test_a_loss_has_the_gradient_of_its_weighted_mean(data_path, tmp_path):
    theirs = saved(tmp_path / "hf", data_path, "gpt-neox")
    ours = HFModel(HFConfig(vocab_size=320, max_sequence=64, transformers=theirs.config.to_dict()))
    ours.model.load_state_dict(theirs.state_dict())
    ids = torch.randint(0, 320, (2, 9), generator=torch.Generator().manual_seed(3))
    targets, weights = ids.roll(-1, 1).masked_fill(ids % 5 == 0, -100), torch.linspace(0.1, 2, 9)
    got = ours(ids, targets, weights=weights, z_loss=0.1)
    logits = theirs(ids).logits.flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="none", ignore_index=-100)
    losses = losses + 0.1 * logits.logsumexp(-1) ** 2
    kept = (targets != -100).flatten() * weights.repeat(2)
    wanted = (losses * kept).sum() / kept.sum()
    torch.testing.assert_close(got.loss, wanted)
    got.loss.backward()
    wanted.backward()
    for mine, other in zip(ours.model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    assert got.positions.count.tolist() == (targets != -100).sum(0).tolist()


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
    refused([good, good], "two models have the same step", steps=[1, 1])
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
