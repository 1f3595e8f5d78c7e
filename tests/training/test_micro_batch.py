"""A micro-batch replayed as a CUDA graph trains as one that runs eagerly. Capturing itself needs a GPU."""

from types import SimpleNamespace

import pytest
import torch

from emergence_train import config as configs
from emergence_train.recorder.position_sums import PositionAccumulator
from emergence_train.training.micro_batch import MicroBatch


class Engine:
    """A fake of DeepSpeed's engine: a linear model whose gradients accumulate."""

    def __init__(self) -> None:
        self.module = torch.nn.Linear(4, 4, bias=False)
        self.calls = 0

    def __call__(self, tokens, targets, weights, ids, z_loss):
        self.calls += 1
        loss_BT = (self.module(tokens) - targets).square().mean(-1)
        positions = SimpleNamespace(
            count=torch.ones(3), loss_sum=loss_BT.sum(0), loss_sq_sum=loss_BT.square().sum(0), correct=torch.zeros(3)
        )
        return SimpleNamespace(loss=loss_BT.mean(), positions=positions)

    def backward(self, loss):
        loss.backward()


def test_a_capture_that_fails_is_logged_and_training_continues(monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "synchronize", lambda: (_ for _ in ()).throw(RuntimeError("operation not permitted"))
    )
    lines: list[str] = []
    engine, sums = Engine(), PositionAccumulator(3, torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    micro_batch = MicroBatch(engine, sums, None, 0.0, graphs=True, log=lines.append)
    tokens, targets = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    first = micro_batch(tokens, targets, None, None)
    gradient = engine.module.weight.grad.clone()
    micro_batch.step_done()
    second = micro_batch(tokens, targets, None, torch.tensor(2.0))
    assert torch.equal(first, second) and not micro_batch.graphs
    assert lines == ["CUDA graphs: capturing failed (operation not permitted); training continues without"]
    assert torch.allclose(engine.module.weight.grad, 3 * gradient) and engine.calls == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("masked, linears", [(False, "bf16"), (True, "bf16"), (False, "fp8")])
def test_graphs_train_as_eager_steps_do(config_file, masked, linears):
    """Losses, norms and sums by position over steps, validation between them; and a rewind drops the graph."""
    from pathlib import Path

    from emergence_train.data.dataset import Dataset
    from emergence_train.faults.anomalies import AnomalyDetector, SkippedBatches
    from emergence_train.parallel import ranks as distributed
    from emergence_train.training import engine as engines
    from emergence_train.training.step import Stepper

    mesh = distributed.start(1)
    runs = []
    for graphs in ("false", "true"):
        over = [
            "model.vocab_size=320",
            "training.precision=bf16",
            f"training.linears={linears}",
            f"training.cuda_graphs={graphs}",
            "model.width=64",
            "model.ffn=96",
            f"training.document_mask={masked}",
        ]
        config = configs.load(config_file, over)
        engine, lines = engines.build(config.model, config.training, config.seed, mesh, graphs=graphs == "true"), []
        sums = PositionAccumulator(config.data.sequence, mesh.device)
        watch, dataset = SimpleNamespace(at=lambda *_, **__: None), Dataset(config.data, config.seed)
        detector, skipped = AnomalyDetector(config.faults, []), SkippedBatches(Path("/dev/null/run"))
        stepper = Stepper(
            config.training,
            config.faults,
            engine,
            dataset,
            mesh,
            sums,
            skipped,
            detector,
            watch,
            graphs == "true",
            lines.append,
        )
        rows = []
        for step in range(1, 9):
            totals, norm, applied = stepper(step, 1e-3, False)
            with torch.no_grad():  # as validation does
                engine(
                    torch.ones(1, 32, dtype=torch.long, device="cuda"),
                    torch.ones(1, 32, dtype=torch.long, device="cuda"),
                )
            rows.append([*totals.tolist(), float(norm), float(applied)])
            if step == 5:
                stepper.micro_batch.reset()
        assert not lines and (stepper.micro_batch.captured is not None) == (graphs == "true")
        runs.append((torch.tensor(rows), sums.take().cpu()))
    (eager, eager_sums), (replayed, replayed_sums) = runs
    assert torch.equal(eager[:, 0], replayed[:, 0])
    assert torch.allclose(eager, replayed, rtol=2e-3), (eager, replayed)
    assert torch.equal(eager_sums[0], replayed_sums[0]) and torch.allclose(eager_sums[1], replayed_sums[1], rtol=2e-3)
