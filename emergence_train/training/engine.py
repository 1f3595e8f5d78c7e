"""The DeepSpeed engine around the model: configuration, optimizer and initial weights."""

import contextlib
from functools import partial
from typing import Any

import torch

from emergence_train.checkpoint.engine_state import EngineState, group_settings
from emergence_train.config import Faults, Training, Zero
from emergence_train.errors import InputError
from emergence_train.models.config import ModelConfig
from emergence_train.models.initial_values import Slice, Slices, whole
from emergence_train.models.language_model import LanguageModel
from emergence_train.models.memory import MOST_PREFETCH, NVME_BUFFERS, NVME_GROUP, bucket_elements
from emergence_train.models.registry import build_model
from emergence_train.parallel.mesh import Group, Mesh
from emergence_train.parallel.ranks import import_deepspeed, leave_compiler_out, on_every_rank
from emergence_train.training import early_reduction, fp8, main_gradients, whole_matrices
from emergence_train.training.micro_batch import own_stream


def deepspeed_config(training: Training, mesh: Mesh, parameters: int) -> dict:
    """The configuration for DeepSpeed; written beside the run and logged to W&B. `parameters`: of the model, all of them."""
    half = training.precision == "bf16"
    bucket = bucket_elements(parameters)
    zero: dict = {"stage": training.zero_stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if training.zero_stage == 3:
        # Norms and other small weights stay on every rank: gathering them costs more than keeping them.
        zero |= {
            "stage3_param_persistence_threshold": 100_000,
            "stage3_prefetch_bucket_size": min(bucket, MOST_PREFETCH),
        }
    zero |= _options(training.zero, mesh.device)
    if training.zero_stage == 1 and mesh.device.type == "cpu":
        # Copying gradients into one buffer pays where memory fragments and copies are free; not on a CPU (7% slower).
        zero |= {"contiguous_gradients": False}
    settings = {
        # DeepSpeed averages over all ranks, and takes each for a sequence of its own.
        "train_batch_size": training.batch * mesh.sequence.size,
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": training.batch // (training.micro_batch_size * mesh.data.size),
        # At stage 0 the loop clips (training.step.Stepper): DeepSpeed does not expose the norm that it computes there.
        "gradient_clipping": training.optimizer.clip if training.zero_stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # PyTorch's AdamW updates what is offloaded: no compiler is needed
        "steps_per_print": 2**31,
        # Its throughput meter synchronises with the GPU twice a micro-batch from the second step on.
        "timers": {"throughput": {"enabled": False, "synchronized": False}},
        # Without immediate_grad_update every gradient is zeroed, added to in bf16 and cast again (training.main_gradients).
        "bf16": {"enabled": True, "immediate_grad_update": training.zero_stage == 1} if half else {"enabled": False},
    }
    if half:
        settings["data_types"] = {"grad_accum_dtype": "fp32"}  # the default accumulates micro-batches in bf16
    return settings


def _options(options: Zero, device: torch.device) -> dict:
    """Of ZeRO, as DeepSpeed has them; nothing of those that are not used."""
    given: dict = {}
    if options.hpz_partition_size > 1:
        given["zero_hpz_partition_size"] = options.hpz_partition_size
    if options.quantized_weights:
        given["zero_quantized_weights"] = True
    for key in ("offload_optimizer", "offload_param"):
        if (target := getattr(options, key)) != "none":
            given[key] = {"device": target, "pin_memory": device.type == "cuda"}
    if options.offload_optimizer == "nvme":
        # All buffers are in memory, and as large as a group; the default of 1e9 would make them 20 GB a rank.
        given["offload_optimizer"] |= {"nvme_path": options.nvme_path, "buffer_count": NVME_BUFFERS}
        given["sub_group_size"] = NVME_GROUP
    return given


def build(model_config: ModelConfig, training: Training, seed: int, mesh: Mesh, *, graphs: bool = False) -> Any:
    """Build the engine; its model is initialised from the seed alone, alike at any world size and ZeRO stage.

    `graphs`: micro-batches will be replayed as CUDA graphs (graphs_possible).
    """
    deepspeed = import_deepspeed()
    leave_compiler_out(not training.compile)
    if graphs:
        own_stream(mesh.device)
    deepspeed.init_distributed(dist_init_required=False)  # takes up the process group that is there
    settings = deepspeed_config(training, mesh, model_config.parameters())
    zero3 = training.zero_stage == 3
    with deepspeed.zero.Init(config_dict_or_path=settings) if zero3 else contextlib.nullcontext():
        model = build_model(model_config)
    _check_abilities(model_config, model, training)
    if training.linears == "fp8":
        fp8.install(model, is_rank0=mesh.is_rank0)
    elif not zero3:
        model.whole_weights()
    model.init_weights(seed, _own_partitions(mesh.gradients) if zero3 else whole)
    model.activation_checkpointing = training.activation_checkpointing
    if training.compile:
        for part in model.compiled_parts():
            part.compile()
    model.to(mesh.device)
    optimizer = training.optimizer.build(model, training.schedule.lr)
    main = main_gradients_possible(training, mesh)
    early = main and mesh.gradients.size > 1
    if early:
        optimizer.param_groups[:] = early_reduction.split(optimizer.param_groups, model, model.compiled_parts())
    settings_before = group_settings(optimizer)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    engine.group_settings = settings_before
    whole_matrices.attach(engine, mesh)
    on_every_rank(EngineState(engine, mesh).check)  # at stages 1 to 3 DeepSpeed has made the optimizer's state
    if main:
        blocks = [] if training.compile else list(model.compiled_parts())
        main_gradients.install(engine, blocks, partial(torch.cuda.Event, external=True) if early else None)
    if training.zero_stage == 0:
        engine.zero_grad = engine.optimizer.zero_grad  # the engine's own walks over all modules
        if mesh.gradients.size == 1:
            engine.enable_backward_allreduce = False  # nothing to reduce, and the copies cost time
    return engine


def _check_abilities(config: ModelConfig, model: LanguageModel, training: Training) -> None:
    """Raise InputError where the kind would ignore what the configuration asks of it."""
    if training.compile and not list(model.compiled_parts()):
        raise InputError(
            f"training.compile: model.kind {config.kind} names no compiled_parts; set training.compile=false"
        )
    if training.activation_checkpointing not in config.checkpointings:
        raise InputError(
            f"training.activation_checkpointing {training.activation_checkpointing}: model.kind {config.kind} has "
            f"{', '.join(config.checkpointings)}; set training.activation_checkpointing=none"
        )


def main_gradients_possible(training: Training, mesh: Mesh) -> bool:
    """Whether main gradients are used: with DeepSpeed's BF16_Optimizer, and not on a CPU, whose 16-bit products are slow."""
    return mesh.device.type == "cuda" and training.main_gradients


def graphs_possible(training: Training, faults: Faults, mesh: Mesh) -> bool:
    """Whether micro-batches are replayed as CUDA graphs: they must not depend on the host or communicate."""
    wanted = training.cuda_graphs and not training.compile and faults.spike != "skip" and mesh.sequence.size == 1
    return wanted and main_gradients_possible(training, mesh)


def _own_partitions(over: Group) -> Slices:
    """At stage 3 a parameter is split into equal partitions, one per rank, the last one padded."""

    def own(parameter: Any) -> Slice:
        held = parameter.ds_tensor
        # hpZ's copy of what is overwritten here; the first gathering makes it anew.
        parameter.ds_secondary_tensor = None
        start = min(over.rank * held.numel(), parameter.ds_numel)
        return Slice(parameter.ds_shape, start, held[: min(held.numel(), parameter.ds_numel - start)])

    return own
