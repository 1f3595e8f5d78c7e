"""Run by test_offload under torchrun: the bytes that real engines keep where the host is, after a step, by kind of thing.

On CPUs, where device and host are one: what DeepSpeed would put on the host is known by the attribute that holds it.
"""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from emergence_train import config as configs
from emergence_train.parallel.ranks import leave, start
from emergence_train.training import engine as engines

MODEL = ("vocab_size=4096", "width=320", "heads=4", "kv_heads=4", "ffn=512")
KINDS = [
    (stage, precision, micro_batch, weights)
    for stage, precision in ((2, "fp32"), (2, "bf16"), (3, "fp32"), (3, "bf16"))
    for micro_batch in (1, 2, 4)
    for weights in ("none", "cpu")
    if stage == 3 or weights == "none"
]


def size(*tensors: Tensor | None) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def held(config, mesh) -> dict[str, float]:
    """Bytes for each parameter of the model."""
    engine = engines.build(config.model, config.training, config.seed, mesh)
    windows = torch.arange(2 * 9).reshape(2, 9)
    for _ in range(engine.gradient_accumulation_steps()):
        engine.backward(engine(windows[:, :-1].contiguous(), windows[:, 1:].contiguous()).loss)
        engine.step()
    zero = engine.optimizer
    third = config.training.zero_stage == 3
    master = zero.fp32_partitioned_groups_flat if third else zero.single_partition_of_fp32_groups
    moments = [value for state in zero.optimizer.state.values() for value in state.values()]
    if third:
        between = [zero.grad_partitions_flat_buffer]
        weights = (
            [p.ds_tensor for p in engine.module.parameters()] if config.training.zero.offload_param == "cpu" else []
        )
    else:
        between = list(zero.accumulated_grads_in_cpu.values())
        weights = zero.param_buffer_of_bit16_for_cpu_offload_groups
    count = config.model.parameters()
    return {
        "optimizer": size(*master, *(value for value in moments if value.numel() > 1)) / count,
        "gradients": size(*(part.grad for part in master), *between) / count,
        "weights": size(*weights) / count,
    }


if __name__ == "__main__":
    measured, mesh = [], start(1)
    for stage, precision, micro_batch, weights in KINDS:
        over = [*(f"model.{key}" for key in MODEL), f"training.zero_stage={stage}", f"training.precision={precision}"]
        over += [f"training.micro_batch={micro_batch}", "training.batch=8", "training.zero.offload_optimizer=cpu"]
        config = configs.load(sys.argv[1], [*over, f"training.zero.offload_param={weights}"])
        measured.append([stage, precision, 4 // micro_batch, weights == "cpu", held(config, mesh)])
    if mesh.is_rank0:
        Path(sys.argv[2]).write_text(json.dumps(measured))
    leave(0)
