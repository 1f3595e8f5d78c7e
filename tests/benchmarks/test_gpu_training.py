"""The variants of the benchmark of training steps, and what is predicted of them; the steps themselves need a GPU."""

import argparse
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_training  # noqa: E402
import redraw  # noqa: E402


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("ours", 23.64),
        ("ours, eager", 23.64),
        ("ours, micro_batch=32", 37.63),
        ("ours, attention=cuda", 23.64),
        ("liger", None),
    ],
)
def test_prediction_is_beside_what_was_measured(name, gib):
    """Measured on an H100; the configuration is that of the benchmark."""
    config = gpu_training.configuration("468m", [])
    assert gpu_training.predicted_gib(config, name) == (None if gib is None else pytest.approx(gib, abs=0.1))


def test_keys_of_a_variant_add_up():
    config = gpu_training.configuration("1.2b", [])
    changed, others = gpu_training.variant(
        config, "micro_batch=32, activation_checkpointing=selective, logits=bfloat16"
    )
    training = changed.training
    assert (training.micro_batch, training.activation_checkpointing, training.cuda_graphs) == (32, "selective", True)
    assert others == {"logits": "bfloat16"} and config.training.micro_batch == 16
    gibs = [
        gpu_training.predicted_gib(config, f"ours, activation_checkpointing={kind}") for kind in ("selective", "full")
    ]
    assert gibs == sorted(gibs, reverse=True) and gibs[0] < gpu_training.predicted_gib(config, "ours")
    with pytest.raises(ValueError, match="activation_checkpointing"):
        gpu_training.variant(config, "activation_checkpointing=some")


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    """Candidates that are stand-ins; a function that measures some with a limit -> (the record, the files at each step)."""
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr("emergence_kernels.bench.timing.ceilings", lambda *_: {})
    monkeypatch.setattr("emergence_train.recorder.environment.environment", lambda *_: {})
    monkeypatch.setattr("emergence_train.parallel.ranks.start", lambda *_: SimpleNamespace(device=torch.device("cpu")))
    monkeypatch.setattr(sys, "argv", ["gpu_training.py"])

    def run(names, limit, seconds, profile="^$"):
        written = []

        def make(name, *_):
            if name == "plain":
                raise RuntimeError("no memory")
            monkeypatch.setattr(gpu_training, "BEGAN", gpu_training.BEGAN - seconds)  # as if it had taken them
            files = list(tmp_path.glob("*.json"))
            written.append([row["candidate"] for row in json.loads(files[0].read_text())["rows"]] if files else [])

            def step(number):
                if number >= 2:
                    rows = json.loads(next(tmp_path.glob("*.json")).read_text())["rows"]
                    written.append([row.get("turns") for row in rows])

            return step

        monkeypatch.setattr(gpu_training, "make", make)
        monkeypatch.setattr(gpu_training, "BEGAN", time.monotonic())
        arguments = argparse.Namespace(set=[], steps=1, rounds=2, limit=limit, profile=profile)
        return gpu_training.measure("468m", names, arguments, tmp_path), written

    return run


def test_rows_are_written_after_every_turn(pretended):
    record, written = pretended(["liger", "plain", "ours"], 1000, 0)
    assert written == [[], ["plain", "liger"], [None, 0, 0], [None, 1, 0], [None, 1, 1], [None, 2, 1]]
    assert [row.get("turns") for row in record["rows"]] == [None, 2, 2] and record["complete"]


def test_candidates_beyond_the_limit_are_named(pretended, capsys):
    record, _ = pretended(["liger", "plain", "ours"], 1000, 1001)
    assert [row["candidate"] for row in record["rows"]] == ["liger"] and not record["complete"]
    assert record["not_reached"] == ["plain", "ours"] and "not reached: 468m ours" in capsys.readouterr().out


def test_profiles_are_of_linears_but_no_other_variant(pretended, monkeypatch, capsys):
    """Of the step after all turns, two warm-up steps and two rounds of one, and in the file."""
    seen = {"gpu_ms": 7.0, "by_kind_ms": {"norm": 7.0}, "host_waits": {}}
    monkeypatch.setattr(gpu_training, "profile", lambda step, number: seen | {"launches": number})
    names = ["ours", "ours, linears=fp8", "ours, micro_batch=8", "liger"]
    record, _ = pretended(names, 1000, 0, "ours")
    assert [row.get("profile", {}).get("launches") for row in record["rows"]] == [4, 4, None, None]
    (path,) = [Path(line) for line in capsys.readouterr().out.splitlines() if line.endswith(".json")]
    assert json.loads(path.read_text()) == record


def test_peers_are_first():
    ours = [name.startswith("ours") for name in gpu_training.CANDIDATES]
    assert ours == sorted(ours) and "plain" in gpu_training.CANDIDATES


def test_the_page_has_the_errors_of_stored_predictions():
    """docs/concepts/training.md, micro_batch: auto: of plain steps, of checkpointing, of operations apart."""
    errors: dict[str, list[float]] = {}
    for file in (ROOT / "benchmarks" / "results").glob("nvidia-*/*-training-*.json"):
        for row in json.loads(file.read_text())["rows"]:
            if row.get("predicted_gib") and row.get("peak_gib"):
                kind = row["candidate"].partition(", ")[2].partition("=")[0]
                errors.setdefault(kind, []).append(100 * (row["predicted_gib"] / row["peak_gib"] - 1))
    page = " ".join((ROOT / "docs" / "concepts" / "training.md").read_text(encoding="utf-8").split())
    assert errors.keys() == {"", "activation_checkpointing", "swiglu"} and min(map(min, errors.values())) > -0.05
    assert f"are met to {max(map(abs, errors[''])):.2f}%" in page
    assert {f"{error:.1f}" for error in errors["activation_checkpointing"]} == {"0.3"}
    assert "selective and full checkpointing (0.3%, one step each)" in page
    assert f"apart from the products ({max(errors['swiglu']):.1f}%)" in page


@pytest.mark.parametrize("former", ["contender", "contestant"])
def test_former_results_are_drawn_alike(former, tmp_path):
    stored = ROOT / "benchmarks" / "results" / "nvidia-h200"
    for file in stored.glob("*-training-*.json"):
        (tmp_path / file.name).write_text(file.read_text().replace('"candidate":', f'"{former}":'))
    assert redraw.training_table(sorted(tmp_path.iterdir())) == (stored / "training.md").read_text()
