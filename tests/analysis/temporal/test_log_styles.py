"""Logs of runs that obey none of our laws, kept in the ways that people keep logs: forecasts stay, or a note says why not."""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

STUDIES = str(Path(__file__).parents[3] / "benchmarks" / "studies")
sys.path.insert(0, STUDIES)
import temporal_generator  # noqa: E402
from temporal_logs import LOGS, SAID, forecast_end  # noqa: E402

sys.path.remove(STUDIES)

STAYS = [name for name in LOGS if name not in ("plain", *SAID)]


@cache
def run() -> temporal_generator.Run:
    return temporal_generator.draw(2, "wsd", "sgd")


@cache
def ahead(log: str) -> dict:
    return forecast_end(LOGS[log](run(), np.random.default_rng(5)), run(), 0.3)


def test_generator_loses_its_noise_with_the_rate():
    """The closed form: without a decay the floor keeps `drop`, and a decay to 0 takes it off."""
    constant = temporal_generator.mean_loss(np.ones(1000), 0.16, 0.28, 0.5, "sgd")
    decayed = temporal_generator.mean_loss(np.clip((1 - np.arange(1000) / 1000) / 0.2, 0, 1), 0.16, 0.28, 0.5, "sgd")
    assert constant[-1] - decayed[-1] == pytest.approx(0.16, abs=0.03)


def test_generator_without_noise_is_the_power_law_it_states():
    constant = temporal_generator.mean_loss(np.ones(1000), 1e-12, 0.28, 0.45, "adam")
    first, second, third = (constant[k] for k in (99, 199, 399))  # blocks of 20 steps: 2,000, 4,000, 8,000
    assert first - third == pytest.approx(0.28, rel=1e-3)
    assert np.log2((first - second) / (second - third)) == pytest.approx(0.45, abs=0.02)


def test_the_end_is_held():
    assert ahead("plain")["low"] <= run().truth[-1] <= ahead("plain")["high"]


@pytest.mark.parametrize("log", STAYS)
def test_forecast_stays(log):
    half = (ahead("plain")["high"] - ahead("plain")["low"]) / 2
    assert abs(ahead(log)["loss"] - ahead("plain")["loss"]) < 0.5 * half
    assert (ahead(log)["high"] - ahead(log)["low"]) / 2 < 2 * half  # not bought by width


@pytest.mark.parametrize("log", SAID)
def test_what_a_log_leaves_out_is_said(log):
    assert SAID[log] in ahead(log)["notes"]
    assert ahead(log)["low"] <= run().truth[-1] <= ahead(log)["high"]
