"""Models by kind: adding one is a file with its section and its module, and a line. This is such a file: a model, no decoder."""

import hashlib
import subprocess
import sys
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from emergence_kernels import LMHead
from emergence_train import config as configs
from emergence_train.checkpoint.format import newest
from emergence_train.evaluation.generation import generate
from emergence_train.evaluation.offline import evaluate
from emergence_train.evaluation.saved_model import load_model
from emergence_train.models.config import ModelConfig
from emergence_train.models.decoder import Decoder
from emergence_train.models.initial_values import Slice, draw_weights, whole
from emergence_train.models.language_model import LanguageModel
from emergence_train.models.presets import PRESETS
from emergence_train.models.registry import MODELS, ModelKind, build_model
from emergence_train.parallel.ranks import start
from emergence_train.planning.planner import plan_run
from emergence_train.training.auto_micro_batch import Device, choose, out_of_memory
from emergence_train.training.run import train
from support import metrics


class BigramConfig(ModelConfig):
    kind: Literal["bigram"] = "bigram"
    breadth: int = 24

    def non_embedding_parameters(self):
        return self.breadth**2 + self.breadth

    def parameters(self):
        return self.non_embedding_parameters() + 2 * self.vocabulary * self.breadth

    def flops_per_token(self, sequence):
        return 6 * (self.breadth**2 + self.vocabulary * self.breadth)


class Bigram(LanguageModel):
    """The next token from the current one alone, independent of earlier ones, document and branch."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.breadth)
        self.scale = nn.Parameter(torch.empty(config.breadth))
        self.mix = nn.Linear(config.breadth, config.breadth, bias=False)
        self.head = LMHead(config.breadth, config.vocabulary)

    def forward(
        self, tokens, targets=None, weights=None, document_ids_BT=None, z_loss=0.0, cache=None, branches_BT=None
    ):
        x = F.silu(self.mix(self.embedding(tokens) * self.scale))
        if targets is None:
            return self.head(x) if cache is None else self.head(x[:, -1:])[:, 0]
        return self.head(x, targets, weights=weights, z_loss=z_loss)

    def init_weights(self, seed, own=whole):
        draw_weights(self, lambda name: 0.3 if name == "mix.weight" else 0.05, seed, own)

    def new_cache(self):
        return "none is needed"


@pytest.fixture
def bigram(monkeypatch):
    monkeypatch.setitem(MODELS, "bigram", ModelKind(f"{__name__}:BigramConfig", f"{__name__}:Bigram"))  # the one line
    return ["model={kind: bigram, breadth: 16, max_sequence: 64}"]


def test_without_a_kind_it_is_the_decoder(config_file):
    config = configs.load(config_file, ["model.vocab_size=320"]).model
    assert config.kind == "decoder" and type(build_model(config)) is Decoder


def test_wrong_kinds_and_keys_are_one_line(config_file, bigram):
    with pytest.raises(configs.InputError, match=f"model: kind 'rnn' is unknown; known: {', '.join(MODELS)}$"):
        configs.load(config_file, ["model.kind=rnn"])
    with pytest.raises(configs.InputError, match="model.bredth: unknown key; did you mean 'breadth'"):
        configs.load(config_file, ["model={kind: bigram, bredth: 3}"])


def test_a_preset_of_another_kind_is_one_line(config_file, bigram, monkeypatch):
    with pytest.raises(configs.InputError, match="model.preset tiny-0.2m is of kind decoder, not bigram; leave it out"):
        configs.load(config_file, ["model={kind: bigram, preset: tiny-0.2m}"])
    monkeypatch.setitem(PRESETS, "broad", {"kind": "bigram", "breadth": 99})
    assert configs.load(config_file, ["model={preset: broad}"]).model.breadth == 99


def test_a_plan_names_what_another_model_lacks(config_file, bigram, tmp_path):
    config = configs.load(config_file, [*bigram, "model.vocab_size=320", "training.micro_batch=1"])
    with pytest.raises(
        configs.InputError, match="model.kind bigram: .* a plan needs its `activations`, `work` and `hidden`"
    ):
        plan_run(config.training, config.model, config.data, 1, "h100-80gb")
    with pytest.raises(
        configs.InputError, match="micro_batch auto: .* bigram has no `activations`; set training.micro_batch=1"
    ):
        choose(config.training, config.model, 32, 1, Device(1 << 36, 9), tmp_path)


def test_a_configuration_is_read_without_torch(config_file):
    script = f"import sys; from emergence_train import config; config.load({str(config_file)!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True)
    assert done.stdout == b"False\n", done.stderr


def test_another_model_counts_and_draws_by_its_kind():
    model = Bigram(BigramConfig(vocab_size=64))
    model.init_weights(3)
    tokens = torch.randint(0, 64, (2, 10))
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    assert counter.get_total_flops() / 20 == model.config.flops_per_token(10)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert sum(sizes.values()) == model.config.parameters()
    assert sizes["mix.weight"] + sizes["scale"] == model.config.non_embedding_parameters()
    assert model.mix.weight.std().item() == pytest.approx(0.3, rel=0.1) and (model.scale == 1).all()
    assert model.head.weight.std().item() == pytest.approx(0.05, rel=0.1)


def test_another_model_trains_resumes_and_is_evaluated(config_file, tmp_path, bigram):
    over = [*bigram, "training.tokens=2048", "checkpoints.every_tokens=1024", "checkpoints.save_state=every"]
    for name, stop_after in (("whole", None), ("parts", 6), ("parts", None)):
        train(configs.load(config_file, [*over, f"name={name}"]), lambda line: None, stop_after=stop_after)
    run, parts = tmp_path / "runs" / "whole", tmp_path / "runs" / "parts"
    assert [row["loss"] for row in metrics(run)] == [row["loss"] for row in metrics(parts)] and len(metrics(run)) == 8
    config = configs.load_run(run).model
    assert type(config) is BigramConfig and config.breadth == 16
    header = metrics(run, "run")[0]
    assert header["params"] == 16 * 16 + 16 and header["parameters"] == config.parameters()
    assert header["flops_per_token"] == config.flops_per_token(32)
    for row in metrics(run, "validation"):
        loss = evaluate(run, row["step"], log=lambda line: None)["loss"]
        assert loss == pytest.approx({name: row["loss"][name] for name in loss}, rel=1e-6)
    with pytest.raises(configs.InputError, match="holds a model of another shape; restore the config.yaml"):
        load_model(config.model_copy(update={"breadth": 8}), newest(run))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("compile=true", r"training.compile: model.kind bigram names no compiled_parts; set training.compile=false"),
        (
            "activation_checkpointing=full",
            "training.activation_checkpointing full: model.kind bigram has none; set training.activation_checkpointing=none",
        ),
    ],
)
def test_what_another_model_would_ignore_is_refused(config_file, bigram, asked, message):
    """The message's remedy is the default, with which the other tests train."""
    with pytest.raises(configs.InputError, match=f"^{message}$"):
        train(configs.load(config_file, [*bigram, f"training.{asked}"]), lambda line: None)


def test_out_of_memory_names_what_another_model_has(config_file, bigram):
    config = configs.load(config_file, [*bigram, "training.micro_batch=1"])
    error = out_of_memory(config.training, config.model, start(1))
    assert str(error).endswith("; run again on more GPUs with training.zero_stage=3")


def test_another_model_generates():
    model = Bigram(BigramConfig(vocab_size=64))
    model.init_weights(3)
    [ids] = generate(model, [[5, 7]], 4, lambda ids: False, start(1))
    assert ids == [int(model(torch.tensor([[token]])).argmax()) for token in [7, *ids[:3]]]


def test_a_model_is_drawn_once_and_each_weight_by_itself(bigram, monkeypatch):
    with monkeypatch.context() as patch:
        for name in ("uniform_", "normal_"):
            patch.setattr(torch.Tensor, name, lambda *of, **options: pytest.fail("drawn by PyTorch first"))
        models = [build_model(BigramConfig(vocab_size=64)) for _ in range(2)]
    models[0].init_weights(3)
    for begin, end in ((0, 17), (17, None)):  # in two parts
        models[1].init_weights(3, lambda p, b=begin, e=end: Slice(p.shape, b, p.detach().view(-1)[b:e]))
    for (name, weight), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(weight, other), name
    expected = torch.empty(24, 24).normal_(std=0.3, generator=torch.Generator().manual_seed(key("3/mix.weight")))
    assert torch.equal(models[0].mix.weight, expected)


def key(name):
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
