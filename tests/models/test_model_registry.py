"""Models by kind: adding one is a file with its section and its module, and a line."""

from typing import Literal

import pytest

from emergence_train import config as configs
from emergence_train.models.config import ModelConfig
from emergence_train.models.decoder import Decoder
from emergence_train.models.registry import MODELS, ModelKind, build_model
from emergence_train.training.run import train
from support import metrics


class PlainConfig(ModelConfig):
    kind: Literal["plain"] = "plain"
    scale: float = 1.0


class PlainDecoder(Decoder):
    """The decoder with its loss scaled."""

    def forward(self, *given, **named):
        out = super().forward(*given, **named)
        return out._replace(loss=out.loss * self.config.scale)


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setitem(MODELS, "plain", ModelKind(PlainConfig, __name__, "PlainDecoder"))  # the one line
    return ["model.kind=plain", "model.scale=0.5"]


def test_without_a_kind_it_is_the_decoder(config_file):
    config = configs.load(config_file, ["model.vocab_size=320"]).model
    assert config.kind == "decoder" and type(build_model(config)) is Decoder


def test_another_model_is_trained_by_its_kind(config_file, tmp_path, plain):
    over = [*plain, "training.tokens=1024", "checkpoints.every_tokens=1024"]
    train(configs.load(config_file, over), lambda line: None)
    run = tmp_path / "runs" / "run"
    assert len(metrics(run)) == 4
    config = configs.load_run(run).model
    assert type(config) is PlainConfig and config.scale == 0.5 and type(build_model(config)) is PlainDecoder
