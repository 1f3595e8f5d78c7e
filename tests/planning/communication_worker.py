"""Run by test_communication under torchrun: bytes of the collectives of a step of real engines, by ZeRO stage and precision."""

import functools
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

# Of n bytes, the largest tensor of the call, a ring over r ranks sends so many times (r - 1) / r.
RINGS = {"all_reduce": 2, "all_gather_into_tensor": 1, "all_gather": 1, "reduce_scatter_tensor": 1, "reduce_scatter": 1}
LEFT_OUT = ("broadcast", "reduce")  # a step has none of them: checked
EXCHANGE = "all_to_all_single"  # of n bytes over S ranks it sends (S - 1) / S
sent: list[tuple[int, float]] = []  # ranks of the group, and bytes
exchanged: list[float] = []
others: list[str] = []


def size(value) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(size, value)) if isinstance(value, (list, tuple)) else 0


def counted(name: str):
    plain = getattr(dist, name)

    @functools.wraps(plain)
    def call(*arguments, **options):
        world = dist.get_world_size(options.get("group"))
        if name == EXCHANGE:
            exchanged.append((world - 1) / world * size(arguments[1]))
        elif name in RINGS:
            most = max(map(size, [*arguments, *options.values()]))
            sent.append((world, RINGS[name] * (world - 1) / world * most))
        else:
            others.append(name)
        return plain(*arguments, **options)

    return call


for name in (*RINGS, *LEFT_OUT, EXCHANGE):  # before DeepSpeed takes any of them
    wrapper = counted(name)
    for module in (dist, dist.distributed_c10d):
        setattr(module, name, wrapper)

from emergence_train import config as configs  # noqa: E402
from emergence_train.parallel.mesh import sequence_parallel  # noqa: E402
from emergence_train.parallel.ranks import leave, start  # noqa: E402
from emergence_train.training import engine as engines  # noqa: E402
from emergence_train.training import main_gradients  # noqa: E402

# At stage 3 matrices of 100,000 elements or more are gathered, as in models that are planned.
MODEL = ("vocab_size=1024", "width=320", "heads=4", "kv_heads=4", "ffn=512")
SPLIT = ((0, "fp32", "none"), (3, "bf16", "selective"), (1, "fp32", "full"))  # two ranks a sequence
KINDS = ((0, "fp32"), (1, "fp32"), (1, "bf16"), (2, "fp32"), (2, "bf16"), (3, "fp32"), (3, "bf16"))


def bytes_of_a_step(config, mesh) -> dict[int, float]:
    """By ranks of the group, for each parameter."""
    engine = engines.build(config.model, config.training, config.seed, mesh)
    if config.training.zero_stage == 1 and config.training.precision == "bf16":
        main_gradients.install(engine)
    windows = torch.arange(2 * 9).reshape(2, 9)
    for _ in range(3):  # at stage 3 the first one records what is gathered when
        sent.clear()
        others.clear()
        for _ in range(engine.gradient_accumulation_steps()):
            engine.backward(engine(windows[:, :-1].contiguous(), windows[:, 1:].contiguous()).loss)
            engine.step()
    assert not others, others
    return {ranks: sum(size for group, size in sent if group == ranks) / config.model.parameters() for ranks, _ in sent}


def exchanged_in_a_step(config, mesh) -> tuple[float, float]:
    """-> bytes of a step in which both ranks share a sequence of 8, and of all else by parameter."""
    mesh = sequence_parallel(mesh, 2)
    engine, own = engines.build(config.model, config.training, config.seed, mesh), mesh.own_positions(8)
    windows = torch.arange(9).reshape(1, 9)
    for _ in range(2):
        sent.clear()
        exchanged.clear()
        for _ in range(engine.gradient_accumulation_steps()):
            tokens, targets = windows[:, :-1][:, own].contiguous(), windows[:, 1:][:, own].contiguous()
            engine.backward(engine(tokens, targets, group=mesh.sequence).loss)
            engine.step()
    return sum(exchanged), sum(size for _, size in sent) / config.model.parameters()


class Quantizer:
    """In PyTorch what DeepSpeed's extension for GPUs does: groups of float16 values as int8 and a float32 scale each."""

    Symmetric = 0

    def quantize(self, values: Tensor, groups: int, *_) -> tuple[Tensor, Tensor]:
        rows = values.view(groups, -1).float()
        scales = rows.abs().amax(1).clamp(min=1e-12) / 127
        return (rows / scales[:, None]).round().to(torch.int8).view(-1), scales

    def dequantize(self, values: Tensor, scales: Tensor, groups: int, *_) -> Tensor:
        return (values.view(groups, -1).float() * scales.view(-1, 1)).half().view(values.shape)


def of_stage_3(path: str, precision: str, micro_batch: str, *options: str) -> dict[int, float]:
    """With options of ZeRO; DeepSpeed makes the groups of hierarchical partitions once a process."""
    from deepspeed.runtime.zero.partition_parameters import CUDAQuantizer

    CUDAQuantizer.quantizer_cuda_module = Quantizer()
    over = [*(f"model.{key}" for key in MODEL), "training.zero_stage=3", f"training.precision={precision}"]
    over += [f"training.micro_batch={micro_batch}", *(f"training.zero.{option}" for option in options)]
    return bytes_of_a_step(configs.load(path, over), start(1))


if __name__ == "__main__":
    measured = {}
    if len(sys.argv) > 3:
        measured, KINDS, SPLIT = of_stage_3(sys.argv[1], *sys.argv[3:]), (), ()
        mesh = start(1)
    for stage, precision in KINDS:
        over = [*(f"model.{key}" for key in MODEL), f"training.zero_stage={stage}", f"training.precision={precision}"]
        config = configs.load(sys.argv[1], over)
        mesh = start(1)
        measured[f"{stage} {precision}"] = sum(bytes_of_a_step(config, mesh).values())
    for stage, precision, checkpointing in SPLIT:
        over = [*(f"model.{key}" for key in (*MODEL, "kv_heads=1")), "training.sequence_parallel=2"]
        over += [f"training.zero_stage={stage}", f"training.precision={precision}", "training.micro_batch=1"]
        over += [f"training.activation_checkpointing={checkpointing}"]
        measured[f"{stage} {precision} {checkpointing}"] = exchanged_in_a_step(configs.load(sys.argv[1], over), mesh)
    if mesh.is_rank0:
        Path(sys.argv[2]).write_text(json.dumps(measured))
    leave(0)
