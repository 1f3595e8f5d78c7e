"""The configuration: one typed tree, read from YAML, changed by dotted overrides (`training.zero_stage=2`).

Every wrong key, type or size is one InputError line that names the place; nothing has been written by then.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, PlainValidator, SerializeAsAny, model_validator

from emergence_train import config_tree, files, interpolation
from emergence_train.config_problem import suggest, validated
from emergence_train.data_config import Data
from emergence_train.errors import InputError
from emergence_train.logging_config import Logging, Samples
from emergence_train.models.decoder_config import DecoderConfig
from emergence_train.models.imported import Imported
from emergence_train.models.presets import PRESETS
from emergence_train.models.registry import MODELS, section_of
from emergence_train.optim.adamw import AdamW
from emergence_train.optim.registry import OPTIMIZERS
from emergence_train.optim.schedule import Schedule
from emergence_train.section import NAME, ByKind, Section

# --------------------------------------------------------------------------------------------------------- training


# Declared as the class of the default kind, for type checkers; ByKind accepts the others too.
OptimizerSection = Annotated[
    SerializeAsAny[AdamW], PlainValidator(ByKind(OPTIMIZERS, "adamw"), json_schema_input_type=AdamW)
]
ModelSection = Annotated[
    SerializeAsAny[DecoderConfig],
    PlainValidator(ByKind(MODELS, "decoder", section_of), json_schema_input_type=DecoderConfig),
]


class PositionWeights(Section):
    """Weights of the loss by position: the first 10, middle 80 and last 10 percent, or any vector [sequence]."""

    head: float = Field(default=1.0, ge=0, description="weight of the first 10% of positions")
    body: float = Field(default=1.0, ge=0, description="weight of the middle 80%")
    tail: float = Field(default=1.0, ge=0, description="weight of the last 10%")
    vector: list[Annotated[float, Field(ge=0)]] | None = Field(
        default=None, description="a weight per position, [sequence]; replaces the three"
    )


def _not_nvme(value: Any) -> Any:
    if value == "nvme":
        raise ValueError(
            "a rank's weights cannot be on NVMe, the optimizer's state can; give cpu, or none and more GPUs"
        )
    return value


class Zero(Section):
    """Options of DeepSpeed's ZeRO, by its names; when each pays is in docs/how-to/cluster.md."""

    hpz_partition_size: int = Field(
        default=1,
        ge=1,
        description="at stage 3: ranks, those of a node, over which a second copy of the weights is partitioned, so that the "
        "backward pass gathers them there",
    )
    quantized_weights: bool = Field(
        default=False, description="at stage 3 on GPUs: weights are gathered as int8, which loses bits of them"
    )
    offload_optimizer: Literal["none", "cpu", "nvme"] = Field(
        default="none",
        description="from stage 2 on: optimizer state in the host's memory, updated there; at stage 3 also in files on NVMe",
    )
    offload_param: Annotated[Literal["none", "cpu"], BeforeValidator(_not_nvme)] = Field(
        default="none", description="at stage 3: a rank's weights in the host's memory between their uses"
    )
    nvme_path: str | None = Field(
        default=None,
        min_length=1,
        description="with offload_optimizer nvme: a directory on a disk of each node, for files that last as long as the run",
    )


def _micro_batch(value: Any) -> Any:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, (int, float)) or value < 1 or value % 1):
        raise ValueError("give a whole number from 1 on, or auto")
    return value if value == "auto" else int(value)


MicroBatch = Annotated[int | Literal["auto"], PlainValidator(_micro_batch, json_schema_input_type=int | str)]


class Profile(Section):
    """Traces by torch's profiler, written to profile/ in the run."""

    steps: list[Annotated[int, Field(ge=1)]] = Field(
        default=[], max_length=2, description="the first and the last step of the trace; none: no trace"
    )
    ranks: list[Annotated[int, Field(ge=0)]] = Field(default=[0], description="ranks that write one")
    shapes: bool = Field(default=False, description="with the shapes of each operation's tensors")
    memory: bool = Field(default=False, description="with what each operation allocates and frees")
    stacks: bool = Field(default=False, description="with the lines of Python that called it; slow")

    @model_validator(mode="after")
    def _in_order(self) -> "Profile":
        if self.steps != sorted(self.steps):
            raise ValueError(f"steps {self.steps} must be the first and the last step; give the smaller one first")
        return self


class Training(Section):
    tokens: int = Field(ge=1, description="tokens to train on; rounded up to whole steps")
    batch: int = Field(ge=1, description="sequences per step, over all ranks")
    micro_batch: MicroBatch = Field(
        default=1,
        description="sequences per forward pass on each rank; auto: the most that divide the rank's share of the batch and by "
        "estimate fit into 0.9 of the GPU's memory (2,048 tokens on a CPU); a resumed run keeps those of its last start",
    )
    precision: Literal["bf16", "fp32"] = Field(
        default="bf16", description="precision of weights and activations in a step"
    )
    linears: Literal["bf16", "fp8"] = Field(
        default="bf16",
        description="operands of the blocks' linear layers in training: as precision has them (bf16), or rounded to fp8 in the "
        "forward pass and the input gradient, which pays from width 2048 on an H100; emulated where a device has no fp8",
    )
    sequence_parallel: int = Field(
        default=1,
        ge=1,
        description="neighbouring ranks that share each sequence: activations of a rank are of its part, and the batch may be "
        "smaller than the number of ranks; for sequences too long for one GPU",
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(default=1, description="DeepSpeed ZeRO stage; 0 with fp32 only")
    zero: Zero = Field(default=Zero(), description="options of ZeRO")
    schedule: Schedule = Field(description="learning rate over tokens")
    optimizer: OptimizerSection = Field(default=AdamW(), description="the optimizer, by its kind")
    position_weights: PositionWeights = Field(default=PositionWeights(), description="weights of the loss by position")
    document_mask: bool = Field(default=False, description="keep attention and targets within a document")
    z_loss: float = Field(default=0.0, ge=0, description="coefficient of the squared log-sum-exp in the loss")
    compile: bool = Field(default=False, description="torch.compile each block")
    cuda_graphs: bool = Field(
        default=True,
        description="on a GPU, at zero_stage 1 in bf16 and not compiled: replay a micro-batch as one CUDA graph",
    )
    activation_checkpointing: Literal["none", "selective", "full"] = Field(
        default="none",
        description="what the backward pass computes again rather than keeps: nothing; the norms and the SwiGLU's product, which "
        "are large and cheap (selective); or each block (full). No gradient changes",
    )
    deterministic: bool = Field(
        default=False, description="on a GPU: sums in a fixed order, the same bits from the same start; slower"
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads per rank; None: torch's default")
    profile: Profile = Field(default=Profile(), description="a trace of chosen steps")

    @property
    def main_gradients(self) -> bool:
        """Whether GPUs keep main gradients (training/main_gradients.py)."""
        return self.zero_stage == 1 and self.precision == "bf16" and self.optimizer.kind == "adamw"

    @property
    def micro_batch_size(self) -> int:
        """micro_batch, once it is a number: the start of a run resolves auto."""
        if self.micro_batch == "auto":
            raise ValueError("micro_batch is auto: the start of a run resolves it")
        return self.micro_batch


class Checkpoints(Section):
    every_tokens: int = Field(ge=1, description="tokens between checkpoints: logs, validation, state")
    log_spaced_start: bool = Field(
        default=False, description="also at steps 1, 2, 4 ... until every_tokens: logs and validation, without state"
    )
    save_state: Literal["every", "last", "never"] = Field(
        default="last", description="keep every checkpoint's model state, only the last ones, or never (logs only)"
    )
    keep_last: int = Field(
        default=2,
        ge=1,
        description="states to keep with save_state last; two or more leave one where the newest is damaged",
    )
    keep_every: int | None = Field(default=None, ge=1, description="keep every n-th checkpoint's state")
    keep_best: bool = Field(default=False, description="keep the state with the lowest iid loss")
    state_tokens: int | None = Field(
        default=None,
        ge=1,
        description="also save state at this interval between checkpoints; only the last ones are kept",
    )
    asynchronous: bool = Field(
        default=False, description="write state in a thread during training, from a copy in memory"
    )
    local_path: str | None = Field(
        default=None,
        min_length=1,
        description="a directory in each node's memory (/dev/shm/...) or on its own disk: copies of the newest state, the "
        "node's own and that of the node before, for a quick restart",
    )


class Faults(Section):
    """Handling of anomalies and of processes that do not respond; see docs/how-to/faults.md."""

    not_finite: Literal["skip", "rewind", "stop"] = Field(
        default="skip", description="a loss or gradient that is not finite: skip the update, rewind, or stop"
    )
    spike: Literal["log", "skip", "rewind", "stop"] = Field(
        default="log", description="a loss far above the last 64; skip synchronises with the GPU before each update"
    )
    spike_deviations: float = Field(
        default=10.0, gt=0, description="threshold of a spike: standard deviations above the median"
    )
    give_up_after: int = Field(
        default=16, ge=1, description="consecutive skipped steps, or rewinds in total, that end the run"
    )
    compare_replicas: bool = Field(default=False, description="compare the ranks' weights at each checkpoint")
    silent_seconds: float = Field(default=30.0, gt=0, description="without a heartbeat: the process is lost")
    hang_seconds: float = Field(
        default=1800.0,
        gt=0,
        description="in one operation, at most: the processes wait for each other; less once the run shows how long it takes",
    )
    node_check: Literal["auto", "always", "warn", "never"] = Field(
        default="auto",
        description="compare nodes before the first step; auto: where there are several; warn: a difference is a warning",
    )


class TaskConfig(Section):
    """A downstream task, scored at every checkpoint. Its items come from `file` (JSONL of context, choices, answer), or
    are generated from `seed`, those of planted skills among them (docs/how-to/tasks.md); or it is lm-eval/NAME, a task of lm-eval
    (pip install 'emergence-train[tasks]')."""

    task: str = Field(min_length=1, description="a generated task, lm-eval/NAME, or any name for a file")
    name: str | None = Field(default=None, min_length=1, description="name in the tables; None: that of the task")
    items: int | None = Field(
        default=None, ge=1, description="items at most; None: 200 generated ones, or all of a file"
    )
    file: str | None = Field(default=None, description="items: JSONL, also .gz")
    shots: int | None = Field(
        default=None, ge=0, description="lm-eval only: few-shot examples; None: the task's default"
    )
    include_path: str | None = Field(
        default=None, description="lm-eval only: a directory of its task files, beside its own"
    )
    seed: int = Field(default=0, ge=0, description="seed of generated items")
    steps: int | None = Field(
        default=None,
        ge=2,
        description="planted skills only: so many questions on one line, each step scored by itself and the whole as right where "
        "all are; None: one question a line",
    )

    @property
    def table_name(self) -> str:
        """The task's name in the tables."""
        steps = "" if self.steps is None else f"-{self.steps}-steps"
        return self.name or self.task.removeprefix("lm-eval/") + steps

    @model_validator(mode="after")
    def _one_origin(self) -> "TaskConfig":
        if self.shots is not None and not self.task.startswith("lm-eval/"):
            raise ValueError(
                f"task {self.task!r}: shots are for tasks of lm-eval; items of a file hold their own examples; leave shots out"
            )
        if self.include_path is not None and not self.task.startswith("lm-eval/"):
            raise ValueError(f"task {self.task!r}: include_path is for tasks of lm-eval; leave it out")
        if self.steps is not None and (self.file or self.task.startswith("lm-eval/")):
            raise ValueError(
                f"task {self.task!r}: steps are for planted skills; rows of a file have steps of their own; leave steps out"
            )
        return self


class Config(Section):
    name: str = Field(
        pattern=NAME,
        description="name of the run and of its directory; auto: made of the file's name and of what was changed",
    )
    out: str = Field(default="runs", description="directory that holds run directories")
    seed: int = Field(default=1, ge=0, lt=2**63, description="seed of the weights and of the order of samples")
    data: Data = Field(description="text, tokenizer, validation sets")
    model: ModelSection = Field(description="sizes of the model, by its kind; `preset: NAME` stands for a named size")
    training: Training = Field(description="tokens, batch, precision, schedule, optimizer")
    checkpoints: Checkpoints = Field(description="when logs, validation and state are written")
    faults: Faults = Field(default=Faults(), description="anomalies and lost processes")
    logging: Logging = Field(default=Logging(), description="console and Weights & Biases")
    tasks: list[TaskConfig] = Field(default=[], description="downstream tasks, scored at every checkpoint")
    samples: Samples = Field(default=Samples(), description="text that the model writes at every checkpoint")
    abilities: str | None = Field(
        default=None,
        description="result.json of an earlier `analyze emergence`: every checkpoint forecasts at how "
        "many tokens this run's loss reaches the thresholds found there",
    )
    imported: Imported | None = Field(default=None, description="of a run that `import hf` wrote")

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        training, schedule, sequence = self.training, self.training.schedule, self.data.sequence
        if sequence > self.model.max_sequence:
            raise ValueError(
                f"data.sequence {sequence} is longer than model.max_sequence {self.model.max_sequence}; "
                f"shorten the one or raise the other"
            )
        if training.zero_stage == 0 and training.precision == "bf16":
            raise ValueError(
                "training.zero_stage 0 with bf16 makes DeepSpeed's first Adam step 0.74 of its size; "
                "use zero_stage 1 (also on one GPU) or precision fp32"
            )
        if training.linears == "fp8" and training.precision != "bf16":
            raise ValueError(
                f"training.linears fp8 with precision {training.precision}: activations are bf16 there; set precision bf16, or "
                f"linears bf16"
            )
        _check_zero(training)
        if training.sequence_parallel > 1:
            _check_split(training, sequence, self.model)
        if training.micro_batch != "auto" and training.batch % training.micro_batch:
            raise ValueError(
                f"training.batch {training.batch} is not a multiple of micro_batch {training.micro_batch}; change one"
            )
        if schedule.kind == "wsd" and schedule.decay_tokens == 0:
            raise ValueError("training.schedule.kind wsd needs decay_tokens, the length of the final decay; set it")
        if schedule.kind != "wsd" and schedule.decay_tokens:
            raise ValueError(
                f"training.schedule.decay_tokens is for kind wsd, not {schedule.kind}; leave it out or set kind to wsd"
            )
        if schedule.warmup_tokens + schedule.decay_tokens > training.tokens:
            raise ValueError(
                "training.schedule: warmup_tokens and decay_tokens are more than training.tokens; lower them"
            )
        vector = training.position_weights.vector
        if vector is not None and len(vector) != sequence:
            raise ValueError(
                f"training.position_weights.vector has {len(vector)} entries; give data.sequence = {sequence}"
            )
        weights = training.position_weights
        if not any(vector if vector is not None else (weights.head, weights.body, weights.tail)):
            raise ValueError("training.position_weights: all weights are zeros; give some position a weight")
        return self

    @property
    def step_tokens(self) -> int:
        """Tokens of an optimizer step; 0 where an imported run's are not known."""
        return self.imported.tokens_per_step if self.imported else self.training.batch * self.data.sequence

    @property
    def run_directory(self) -> Path:
        return Path(self.out) / self.name

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _check_zero(training: Training) -> None:
    """Raise ValueError for options of ZeRO that its stage or the optimizer does not have."""
    zero, stage = training.zero, training.zero_stage
    of_stage_3 = {
        "hpz_partition_size": zero.hpz_partition_size > 1,
        "quantized_weights": zero.quantized_weights,
        "offload_param": zero.offload_param != "none",
    }
    for key, wanted in of_stage_3.items():
        if wanted and stage != 3:
            raise ValueError(
                f"training.zero.{key} is of stage 3, not {stage}; set training.zero_stage=3, or leave it out"
            )
    if zero.offload_optimizer != "none" and stage < 2:
        raise ValueError(
            f"training.zero.offload_optimizer is of stages 2 and 3, not {stage}; set training.zero_stage=2, or leave it out"
        )
    if zero.offload_optimizer == "nvme" and stage != 3:
        raise ValueError(
            f"training.zero.offload_optimizer nvme is of stage 3, not {stage}; set training.zero_stage=3, or give cpu"
        )
    if (zero.offload_optimizer == "nvme") != (zero.nvme_path is not None):
        raise ValueError("training.zero.nvme_path and offload_optimizer nvme need one another; set both, or neither")
    if zero.offload_param != "none" and zero.offload_optimizer == "none":
        raise ValueError(
            "training.zero.offload_param without the optimizer's state, which is larger; set offload_optimizer too"
        )
    if zero.offload_optimizer != "none" and training.optimizer.kind != "adamw":
        raise ValueError(
            f"training.zero.offload_optimizer is of optimizer.kind adamw, not {training.optimizer.kind}; leave it out"
        )


def _check_split(training: Training, sequence: int, model: DecoderConfig) -> None:
    """Raise ValueError where ranks cannot share a sequence."""
    key = f"training.sequence_parallel {training.sequence_parallel}"
    if sequence % training.sequence_parallel:
        raise ValueError(f"{key}: data.sequence {sequence} is not a multiple of it; choose a divisor")
    if reason := model.unsplit_reason(training.sequence_parallel):
        raise ValueError(f"{key}: {reason}")
    if training.compile:
        raise ValueError(f"{key}: compiled blocks do not exchange heads; set training.compile false")


# ---------------------------------------------------------------------------------------------------------- reading


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """The configuration in the YAML file `path` with `a.b=value` overrides applied; values are parsed as YAML.

    `model.preset: NAME` stands for that preset's sizes, which other keys under `model` then change. `name: auto` and `${key}` in
    the name, `out` and `logging` are replaced (interpolation.py).
    """
    tree = config_tree.of_a_run(Path(path))
    for override in overrides:
        _expand_mode(tree)
        config_tree.apply(tree, override)
    _expand_preset(tree, path)
    if interpolation.wanted(tree):
        values = validated(Config, tree | {"name": interpolation.AUTO, "out": "runs", "logging": {}}, path)
        tree = interpolation.interpolate(
            tree, values.model_dump(mode="json"), os.environ, origin=Path(path).stem, overrides=overrides
        )
    return validated(Config, tree, path)


def file_of(run: Path) -> Path:
    """The file in a run directory that holds its resolved configuration. Raises InputError where there is none."""
    path = run / "config.yaml"
    if not path.is_file():
        raise InputError(f"{run}: has no config.yaml; name the directory of a run that train or import wrote")
    return path


def load_run(run: Path) -> Config:
    """The resolved configuration that a run directory holds.

    Its data and the files of its tasks are looked for from here, else from every directory above the run.
    """
    config = load(file_of(run))
    data = config.data.model_copy(update={"path": files.from_run(run, config.data.path, "dataset.json")})
    paths = ("file", "include_path")
    tasks = [task.model_copy(update={k: files.from_run(run, getattr(task, k)) for k in paths}) for task in config.tasks]
    return config.model_copy(update={"data": data, "tasks": tasks})


def _expand_mode(tree: dict) -> None:
    """`logging.wandb: offline` as a section, so that an override may set a key in it."""
    logging = tree.get("logging")
    if isinstance(logging, dict) and isinstance(logging.get("wandb"), str):
        logging["wandb"] = {"mode": logging["wandb"]}


def _expand_preset(tree: dict, path: str | Path) -> None:
    model = tree.get("model")
    if not isinstance(model, dict) or "preset" not in model:
        return
    name = model.pop("preset")
    if not isinstance(name, str) or name not in PRESETS:
        raise InputError(f"{path}: model.preset: unknown {name!r}{suggest(str(name), PRESETS)}")
    sizes = {"kind": "decoder"} | PRESETS[name]
    if model.get("kind", sizes["kind"]) != sizes["kind"]:
        raise InputError(
            f"{path}: model.preset {name} is of kind {sizes['kind']}, not {model['kind']}; leave it out and give sizes"
        )
    tree["model"] = sizes | model
