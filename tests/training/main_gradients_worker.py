"""Run by test_main_gradients under torchrun: the same training by DeepSpeed's step and by main gradients."""

import json
import sys
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from emergence_train import config as configs
from emergence_train.parallel.ranks import leave, start
from emergence_train.training import engine as engines
from emergence_train.training import main_gradients
from emergence_train.training.fp8 import Fp8Linear

STEPS, SEQUENCE, VOCABULARY = 6, 20, 320  # 40 rows a micro-batch: no weight of the model has as many


class Gradients(TorchDispatchMode):
    """Counts the operations that make or change a bf16 tensor of a linear weight's shape, float32 copies of a bf16 one of any
    parameter's, and synchronisations with the host."""

    def __init__(self, shapes: set[torch.Size], parameters: set[torch.Size]) -> None:
        super().__init__()
        self.shapes, self.parameters, self.passes, self.copies, self.waits = shapes, parameters, 0, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.waits += name == "_local_scalar_dense"
        self.copies += name == "_to_copy" and out.dtype == torch.float32 and args[0].shape in self.parameters
        outs = out if isinstance(out, (list, tuple)) else args[0] if name.startswith("_foreach_zero_") else [out]
        views = name in ("detach", "t", "view", "_unsafe_view", "alias", "transpose", "slice", "as_strided")
        if not views:
            self.passes += sum(
                isinstance(t, torch.Tensor) and t.dtype == torch.bfloat16 and t.shape in self.shapes for t in outs
            )
        return out


def run(engine, mesh, config, spoil: int | None = None) -> dict:
    """Train; `spoil`: a step whose loss is not finite. -> weights, norms, passes over gradients and waits of a step."""
    from deepspeed.accelerator import get_accelerator

    device_waits: list[int] = []
    # nothing on a CPU; on a GPU, a wait for all of it
    get_accelerator().synchronize = lambda *_: device_waits.append(1)
    generator = torch.Generator().manual_seed(1 + mesh.data.rank)
    micro = config.training.micro_batch
    rounds = config.training.batch // (micro * mesh.data.size)
    shapes = {m.weight.shape for m in engine.module.blocks.modules() if isinstance(m, torch.nn.Linear)}
    parameters = {parameter.shape for parameter in engine.module.parameters()}
    norms, weights, waits = [], [], []
    for step in range(STEPS):
        device_waits.clear()
        waits.append(0)
        with Gradients(shapes, parameters) as counted:
            for _ in range(rounds):
                windows = torch.randint(VOCABULARY, (micro, SEQUENCE + 1), generator=generator)
                loss = engine(windows[:, :-1].contiguous(), windows[:, 1:].contiguous()).loss
                engine.backward(loss * float("nan") if step == spoil else loss)
                before = counted.waits  # forward looks at targets, which is free on a CPU and left out on a GPU
                engine.step()
                waits[-1] += counted.waits - before
        norms.append(float(engine.get_global_grad_norm()))
        assert bool(main_gradients.step_applied(engine)) == (step != spoil)
        weights.append(torch.cat([p.detach().float().flatten() for p in engine.module.parameters()]))
    result = {"norms": norms, "weights": weights, "passes": counted.passes, "rounds": rounds}
    return result | {"copies": counted.copies, "waits": waits[-1] + len(device_waits)}


if __name__ == "__main__":
    over = [
        "model.vocab_size=320",
        "training.zero_stage=1",
        "training.precision=bf16",
        "training.batch=8",
        *sys.argv[3:],
    ]
    config = configs.load(sys.argv[1], over)
    mesh = start(1)
    theirs = run(engines.build(config.model, config.training, config.seed, mesh), mesh, config)
    engine = engines.build(config.model, config.training, config.seed, mesh)
    main_gradients.install(engine)
    ours = run(engine, mesh, config)
    spoilt = engines.build(config.model, config.training, config.seed, mesh)
    main_gradients.install(spoilt)
    left_out = run(spoilt, mesh, config, spoil=3)
    first = theirs["weights"][0]
    result = {
        "moved": float((theirs["weights"][-1] - first).norm() / first.norm()),
        "apart": float((theirs["weights"][-1] - ours["weights"][-1]).norm() / first.norm()),
        "norms": [theirs["norms"], ours["norms"]],
        "passes": [theirs["passes"], ours["passes"]],
        "copies": [theirs["copies"], ours["copies"]],
        "waits": [theirs["waits"], ours["waits"]],
        "rounds": ours["rounds"],
        "linears": [
            sum(isinstance(module, kind) for module in engine.module.modules())
            for kind in (main_gradients.AccumulatingLinear, Fp8Linear)
        ],
        "held": bool(torch.equal(left_out["weights"][2], left_out["weights"][3])),
        "went_on": bool((left_out["weights"][4] - left_out["weights"][3]).abs().max() > 0),
        "before": bool(torch.equal(left_out["weights"][2], ours["weights"][2])),
    }
    Path(sys.argv[2], f"rank-{mesh.data.rank}.json").write_text(json.dumps(result))
    leave(0)
