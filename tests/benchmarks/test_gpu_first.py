"""The staged entry for a GPU: each stage in its own process, killed at its limit, the rest reported and resumed."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_first  # noqa: E402


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    """An H100 and a list of stages that are Python one-liners, "slow" of a small share; -> the record's path."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100")
    monkeypatch.setattr("emergence_kernels.bench.run.commit", lambda: "abc")
    monkeypatch.setattr(gpu_first, "SHORTEST", 0.5)

    def use(**code: str) -> Path:
        stages = [
            gpu_first.Stage(n, 0.02 if n == "slow" else 0.5, (sys.executable, "-c", c), "") for n, c in code.items()
        ]
        monkeypatch.setattr(gpu_first, "stages", lambda out: stages)
        return tmp_path / "nvidia-h100" / "gpu-first.json"

    return use


def call(tmp_path, minutes: float, *more: str) -> int:
    return gpu_first.main(["--minutes", str(minutes), "--out", str(tmp_path), *more])


def test_stages_end_separately_and_the_next_call_continues(pretended, tmp_path, capsys):
    path = pretended(good="print('fine')", bad="raise SystemExit(3)", slow="import time; time.sleep(60)")
    assert call(tmp_path, 1) == 1
    stages = json.loads(path.read_text())["stages"]
    assert {name: stage["status"] for name, stage in stages.items()} == dict(good=0, bad=3, slow="cut off")
    assert "for the next call: slow" in capsys.readouterr().out
    assert (path.parent / "gpu-first-good.log").read_text() == "fine\n"
    path = pretended(good="raise SystemExit(9)", bad="pass", slow="pass")
    assert call(tmp_path, 20) == 0, "what was done is not done again"
    assert {name: stage["status"] for name, stage in json.loads(path.read_text())["stages"].items()} == dict(
        good=0, bad=0, slow=0
    )
    assert "done before" in capsys.readouterr().out


def test_another_commit_starts_over(pretended, tmp_path, monkeypatch):
    path = pretended(only="pass")
    assert call(tmp_path, 1) == 0
    monkeypatch.setattr("emergence_kernels.bench.run.commit", lambda: "def")
    pretended(only="raise SystemExit(4)")
    assert call(tmp_path, 1) == 1 and json.loads(path.read_text())["stages"]["only"]["status"] == 4


def test_every_stage_is_a_command_that_exists(tmp_path, capsys):
    assert gpu_first.main(["--list"]) == 0
    assert sum(stage.share for stage in gpu_first.stages(tmp_path)) == pytest.approx(1.0)
    for stage in gpu_first.stages(tmp_path):
        script = next((Path(part) for part in stage.command if part.endswith(".py")), None)
        assert script is None or script.is_file()
    assert "train-468m" in capsys.readouterr().out


def test_without_a_gpu_it_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert call(tmp_path, 1) == 2 and "no CUDA device" in capsys.readouterr().err
