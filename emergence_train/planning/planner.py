"""What a run would take on so many GPUs of a kind: memory, communication, time; and what to change where it does not fit."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from emergence_train.config import Training
from emergence_train.data_config import Data
from emergence_train.errors import InputError
from emergence_train.formatting import duration
from emergence_train.models.config import ModelConfig
from emergence_train.models.devices import GPUS
from emergence_train.models.memory import GIB, StepMemory
from emergence_train.planning import step_time
from emergence_train.planning.communication import (
    QUANTIZED,
    bytes_per_step,
    exchanged_per_step,
    gathered,
    gathered_inside,
)
from emergence_train.planning.fit import SHARE, divisors, memory_of, needed_bytes
from emergence_train.planning.offload import Offload, offload_cost
from emergence_train.planning.step_time import NODE, StepTime

SHORT = 0.1  # seconds a step below which they are printed in milliseconds
LEAST_HOURS = 1.0  # GPU hours below which a run's time is printed in minutes or seconds


@dataclass(frozen=True)
class RunPlan:
    """The plan of a run; bytes and rates of one GPU where they are not said to be of all."""

    gpu: str
    gpus: int
    parameters: int
    training: Training  # with the micro-batch chosen
    memory: StepMemory
    needed: float  # bytes: the step, and validation beside it
    limit: float  # bytes that may be used
    sent: float  # bytes that a GPU sends in a step
    exchanged: float  # of them, for attention, to those that share its sequences
    step: StepTime
    steps: int
    step_tokens: int
    flops_per_token: float
    inside: float = 0.0  # of what is sent, inside the groups of hierarchical partitions
    host: Offload = Offload()  # a GPU's share
    warnings: tuple[str, ...] = ()  # what runs and does not do what it is for, each with its remedy
    suggestion: str | None = None  # arguments that make it fit; None where it fits, or nothing was seen to

    @property
    def fits(self) -> bool:
        return self.needed <= self.limit and self.host.memory <= self.host_limit

    @property
    def host_limit(self) -> float:
        """Bytes of the host's memory that a GPU's share may take."""
        return SHARE * GPUS[self.gpu].host.memory

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs."""
        return self.step_tokens / self.step.total

    @property
    def mfu(self) -> float:
        return self.flops_per_token * self.tokens_per_second / (self.gpus * GPUS[self.gpu].bf16)

    @property
    def days(self) -> float:
        return self.steps * self.step.total / 86_400

    def as_json(self) -> dict:
        training = self.training
        return {
            "gpu": self.gpu,
            "gpus": self.gpus,
            "parameters": self.parameters,
            "zero_stage": training.zero_stage,
            "sequence_parallel": training.sequence_parallel,
            "micro_batch": training.micro_batch,
            "micro_batches": _rounds(training, self.gpus),
            "activation_checkpointing": training.activation_checkpointing,
            "memory_per_gpu": asdict(self.memory) | {"total": self.memory.total},
            "memory_needed": self.needed,
            "memory_limit": self.limit,
            "host_memory_per_gpu": asdict(self.host) | {"total": self.host.memory, "limit": self.host_limit},
            "communication_bytes_per_step": self.sent,
            "inside_bytes_per_step": self.inside,
            "exchanged_bytes_per_step": self.exchanged,
            "step_seconds": self.step.total,
            "step_seconds_by": asdict(self.step),
            "steps": self.steps,
            "tokens_per_second": self.tokens_per_second,
            "mfu": self.mfu,
            "days": self.days,
            "gpu_hours": 24 * self.days * self.gpus,
            "fits": self.fits,
            "warnings": list(self.warnings),
            "suggestion": self.suggestion,
        }


def plan_run(training: Training, model: ModelConfig, data: Data, gpus: int, gpu: str) -> RunPlan:
    """The plan of a run, as _plan_run's; InputError also for a kind of model without a closed form of its memory and work."""
    try:
        return _plan_run(training, model, data, gpus, gpu)
    except NotImplementedError:
        raise InputError(
            f"model.kind {model.kind}: has no closed form of memory or work; a plan needs its `activations`, `work` "
            f"and `hidden` (docs/how-to/extend.md)"
        ) from None


def _plan_run(training: Training, model: ModelConfig, data: Data, gpus: int, gpu: str) -> RunPlan:
    """The plan of a run.

    Args:
        gpus: how many, in nodes of eight; data-parallel, in groups of training.sequence_parallel. gpu: a key of GPUS.

    Raises:
        InputError: the batch cannot be shared by so many GPUs in such micro-batches; the vocabulary is not known yet.
    """
    ranks, hpz = training.sequence_parallel, training.zero.hpz_partition_size
    if gpus % hpz:
        raise InputError(f"training.zero.hpz_partition_size {hpz} does not divide {gpus} GPUs; give a number that does")
    if gpus % ranks or training.batch % (gpus // ranks):
        fits = [ranks * groups for groups in divisors(training.batch)]
        near = [min((d for d in fits if d > gpus), default=None), next((d for d in fits if d < gpus), None)]
        given = f"{gpus} GPUs" if ranks == 1 else f"{gpus} GPUs in groups of {ranks}"
        raise InputError(
            f"training.batch {training.batch} is not a multiple of {given}; give --gpus "
            f"{' or '.join(str(count) for count in near if count)}"
        )
    share = training.batch // (gpus // ranks)
    if training.micro_batch != "auto" and share % training.micro_batch:
        smaller = next(size for size in divisors(share) if size < training.micro_batch)
        raise InputError(
            f"training.batch {training.batch} on {gpus} GPUs is {share} sequences each, no multiple of micro_batch "
            f"{training.micro_batch}; give training.micro_batch={smaller}, or auto"
        )
    model = _with_vocabulary(model, data)
    if training.micro_batch == "auto":
        sizes = divisors(share)
        room = SHARE * GPUS[gpu].memory
        needs = (needed_bytes(training, model, data.sequence, gpus, size, GPUS[gpu].capability) for size in sizes)
        chosen = next((size for size, need in zip(sizes, needs) if need <= room), 1)
        training = training.model_copy(update={"micro_batch": chosen})
    planned = _estimate(training, model, data.sequence, gpus, gpu)
    return planned if planned.fits else _with_suggestion(planned, model, data.sequence)


def _estimate(training: Training, model: ModelConfig, sequence: int, gpus: int, gpu: str) -> RunPlan:
    """The plan of a configuration whose micro-batch is a number."""
    kind, stage = GPUS[gpu], training.zero_stage
    micro_batch, parameters = training.micro_batch_size, model.parameters()
    size, peak = (2, kind.bf16) if training.precision == "bf16" else (4, kind.fp32)
    rounds, ranks = _rounds(training, gpus), training.sequence_parallel
    work = model.work(sequence, training.activation_checkpointing, size, training.linears)
    tokens = rounds * micro_batch * sequence / ranks
    passes = step_time.device_seconds(work, tokens, peak, kind, training.linears == "fp8")
    hpz, moments = training.zero.hpz_partition_size, training.optimizer.moments
    quantized = training.zero.quantized_weights and gpus > 1
    gathered_size = QUANTIZED if quantized else size
    main = training.main_gradients
    sent, exchanged = bytes_per_step(parameters, size, stage, gpus, rounds, hpz, gathered_size, main), 0.0
    inside = gathered_inside(parameters, gathered_size, rounds, hpz) if hpz > 1 else 0.0
    if quantized:
        seconds = step_time.quantizing_seconds(rounds * gathered(parameters), size, kind)
        passes = replace(passes, traffic=passes.traffic + seconds)
    if ranks > 1:
        elements = model.exchanged(ranks)
        exchanged = exchanged_per_step(elements, size, ranks, tokens, training.activation_checkpointing)
    exposed = step_time.exposed_seconds(sent, gpus, kind, stage, passes.total, inside, hpz)
    if main and not training.compile:
        # size 0: without the gathering of weights
        reduced = bytes_per_step(parameters, 0, stage, gpus, rounds, main_gradients=True)
        late = step_time.late_share(parameters, model.vocabulary * model.hidden)
        exposed -= step_time.hidden_seconds(reduced, gpus, kind, passes.total / rounds, late)
    exposed += step_time.exposed_seconds(exchanged, ranks, kind, 0, 0)  # attention waits for it
    host, optimizer = Offload(), 0.0
    if training.zero.offload_optimizer == "none":
        optimizer = step_time.optimizer_seconds(parameters, size, moments, stage, gpus, rounds, kind)
    else:
        on_host = training.zero.offload_param != "none"
        disk = training.zero.offload_optimizer == "nvme"
        host = offload_cost(parameters, size, stage, gpus, rounds, moments, kind.host, weights=on_host, disk=disk)
    step_tokens = training.batch * sequence
    return RunPlan(
        gpu,
        gpus,
        parameters,
        training,
        memory=memory_of(training, model, sequence, gpus, micro_batch, kind.capability),
        needed=needed_bytes(training, model, sequence, gpus, micro_batch, kind.capability),
        limit=SHARE * kind.memory,
        sent=sent + inside + exchanged,
        inside=inside,
        host=host,
        exchanged=exchanged,
        step=StepTime(
            passes.products,
            passes.attention,
            passes.traffic,
            optimizer,
            exposed,
            host.seconds,
        ),
        warnings=tuple(_warnings(training, gpu)),
        steps=-(-training.tokens // step_tokens),
        step_tokens=step_tokens,
        flops_per_token=model.flops_per_token(sequence),
    )


def _warnings(training: Training, gpu: str) -> Iterator[str]:
    hpz = training.zero.hpz_partition_size
    if hpz > NODE:
        yield (
            f"training.zero.hpz_partition_size {hpz} is more than the {NODE} GPUs of a node, so that its gatherings cross the "
            f"network; give {NODE} or a divisor"
        )
    if training.linears == "fp8" and not GPUS[gpu].fp8:
        yield (
            f"training.linears fp8: {gpu} has no fp8, it would be emulated, slower than bf16, whose time this is; set "
            f"training.linears=bf16, or plan for h100-80gb"
        )


def _rounds(training: Training, gpus: int) -> int:
    """Micro-batches of a GPU in a step."""
    return training.batch * training.sequence_parallel // (training.micro_batch_size * gpus)


def _with_suggestion(planned: RunPlan, model: ModelConfig, sequence: int) -> RunPlan:
    """The plan with the arguments of the fastest variant that fits: on as many GPUs, or else on the fewest more; with sequences
    shared by more GPUs of a node only where nothing else fits on as many."""
    given = planned.training
    for gpus, ranks in _layouts(given, model, sequence, planned.gpus):
        training = given.model_copy(update={"sequence_parallel": ranks})
        variants = (_estimate(t, model, sequence, gpus, planned.gpu) for t in _variants(training, model, gpus))
        fits = [variant for variant in variants if variant.fits]
        if fits:
            best = max(fits, key=lambda variant: variant.tokens_per_second)
            return replace(planned, suggestion=_arguments(planned, best))
    return planned


def _layouts(training: Training, model: ModelConfig, sequence: int, least: int) -> list[tuple[int, int]]:
    """(GPUs, GPUs that share a sequence), in the order in which they are tried: from `least` GPUs on, in whole groups of
    hierarchical partitions."""
    own = training.sequence_parallel
    splits = {own} | {
        ranks
        for ranks in range(2 * own, NODE + 1, own)
        if not training.compile and sequence % ranks == 0 and model.unsplit_reason(ranks) is None
    }
    layouts = {(groups * ranks, ranks) for ranks in splits for groups in divisors(training.batch)}
    hpz = training.zero.hpz_partition_size
    return sorted(layout for layout in layouts if layout[0] >= least and layout[0] % hpz == 0)


def _variants(training: Training, model: ModelConfig, gpus: int) -> Iterator[Training]:
    share = training.batch // (gpus // training.sequence_parallel)
    for stage in range(training.zero_stage, 4):
        for checkpointing in model.checkpointings:
            for size in divisors(share):
                changes = {"zero_stage": stage, "activation_checkpointing": checkpointing, "micro_batch": size}
                yield training.model_copy(update=changes)


def _arguments(planned: RunPlan, best: RunPlan) -> str:
    """What to give in the place of the plan's, as on the command line."""
    given = [f"--gpus {best.gpus}"] if best.gpus != planned.gpus else []
    for key in ("zero_stage", "sequence_parallel", "micro_batch", "activation_checkpointing"):
        if (value := getattr(best.training, key)) != getattr(planned.training, key):
            given.append(f"training.{key}={value}")
    return " ".join(given)


def _with_vocabulary(model: ModelConfig, data: Data) -> ModelConfig:
    """With the rows of its embedding: for the prepared data, or the tokenizer that will be trained."""
    if (Path(data.path) / "dataset.json").is_file():
        from emergence_train.data.dataset import load_index

        return model.with_vocabulary(load_index(Path(data.path))["tokenizer"]["vocabulary"], data.path)
    if data.tokenizer.vocab_size:
        return model.with_vocabulary(data.tokenizer.vocab_size, "data.tokenizer.vocab_size")
    if model.vocab_size:
        return model
    raise InputError(
        "model.vocab_size: the tokenizer's size is not known before `prepare`; add model.vocab_size=N, for example 65024"
    )


def format_table(planned: RunPlan) -> str:
    """A short text for the terminal."""
    memory, step, training = planned.memory, planned.step, planned.training
    unit, many = ("seconds", 1.0) if step.total >= SHORT else ("milliseconds", 1e3)
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        f"activations (checkpointing {training.activation_checkpointing})": memory.activations,
        "logits": memory.logits,
        "workspace": memory.workspace,
        "in all": memory.total,
        "with validation": planned.needed,
    }
    lines = [
        f"{planned.parameters:,} parameters on {planned.gpus} x {planned.gpu}: ZeRO-{training.zero_stage}, micro-batch "
        f"{training.micro_batch}, {_rounds(training, planned.gpus)} a step"
        + (f", {training.sequence_parallel} GPUs a sequence" if training.sequence_parallel > 1 else ""),
        "",
        "GiB a GPU",
        *(f"  {name:<36}{size / GIB:8.2f}" for name, size in parts.items()),
        f"  {'may be used':<36}{planned.limit / GIB:8.2f}  {'fits' if planned.fits else 'does not fit'}",
        *_host_lines(planned),
        "",
        f"{unit} a step",
        *(f"  {name:<36}{seconds * many:8.3f}" for name, seconds in asdict(step).items()),
        f"  {'in all':<36}{step.total * many:8.3f}",
        "",
        f"{planned.tokens_per_second:,.0f} tokens/s on all GPUs, MFU {planned.mfu:.1%}, {planned.sent / GIB:,.2f} GiB sent "
        f"by each in a step",
        f"{planned.steps:,} steps: {_time(planned)}, checkpoints and tasks apart",
    ]
    if not planned.fits:
        remedy = (
            f"to fit, add: {planned.suggestion}" if planned.suggestion else "nothing fits: try a GPU with more memory"
        )
        lines += ["", remedy]
    if planned.warnings:
        lines += ["", *(f"warning: {warning}" for warning in planned.warnings)]
    return "\n".join(lines)


def _time(planned: RunPlan) -> str:
    """Days and GPU hours; of a run of a model that trains on a laptop, minutes."""
    hours = 24 * planned.days * planned.gpus
    if hours < LEAST_HOURS:
        return f"{duration(86400 * planned.days)}, {hours:.2g} GPU hours"
    return f"{planned.days:,.2f} days, {hours:,.0f} GPU hours"


def _host_lines(planned: RunPlan) -> list[str]:
    """What is on the host; nothing where nothing is."""
    host = planned.host
    if not host.memory:
        return []
    parts = {"optimizer": host.optimizer, "gradients": host.gradients, "weights": host.weights, "in all": host.memory}
    verdict = "fits" if host.memory <= planned.host_limit else "does not fit"
    return [
        "",
        "GiB of the host a GPU",
        *(f"  {name:<36}{size / GIB:8.2f}" for name, size in parts.items()),
        f"  {'may be used':<36}{planned.host_limit / GIB:8.2f}  {verdict}",
        f"{host.to_host / GIB:,.2f} GiB to the host and {host.to_gpu / GIB:,.2f} back in a step; their time is unmeasured",
        *(
            [f"{host.on_disk / GIB:,.2f} GiB on NVMe, all of it written and read in a step; its time is unmeasured too"]
            if host.on_disk
            else []
        ),
    ]


def as_comments(planned: RunPlan | None, config: str) -> str:
    """The plan as comments below a configuration; without one, the command that makes it."""
    if planned is None:
        names = list(GPUS)
        return (
            f"\n# for its cost, with KIND one of {', '.join(names[:2])},\n# {', '.join(names[2:])}:"
            f"\n# emergence-train plan {config} --gpus N --gpu KIND"
        )
    return "".join(f"\n# {line}".rstrip() for line in ["", *format_table(planned).splitlines()])
