"""The training loop.

One step: the samples of the global batch are dealt out to the ranks by index, each rank runs its micro-batches forward
and backward, DeepSpeed steps. The loss at every position comes from the same forward pass. At a checkpoint the sums
since the last one and the validation losses become a `positions` table, then the engine's state is saved; so a run that
goes on from a state has every row before it and none after.
"""

import fcntl
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from torch.nn.utils import get_total_norm

from emergence_train import files
from emergence_train.analysis.temporal import forecast_final
from emergence_train.config import Config
from emergence_train.data.dataset import Dataset, load_index
from emergence_train.distributed import Ranks, from_first_rank, start, sum_over_ranks
from emergence_train.errors import InputError, RunError
from emergence_train.evaluation.at_checkpoint import Evaluator
from emergence_train.evaluation.positions import IGNORED, PositionAccumulator, reduced, rows, validate
from emergence_train.models import counting
from emergence_train.models.config import padded_vocabulary
from emergence_train.records import read_metrics
from emergence_train.schedule import learning_rate
from emergence_train.training import checkpoint
from emergence_train.training import engine as engines
from emergence_train.training.console import Console
from emergence_train.training.logs import RunLog, device_name, write_config, write_environment
from emergence_train.training.mirror import Mirror
from emergence_train.training.weights import weight_vector

# What may change when a run goes on: nothing that changes a loss.
VOLATILE = ("out", "logging", "data.path", "data.workers", "training.micro_batch", "training.threads",
            "checkpoints.save_state", "tasks")  # fmt: skip
PLAN_POINTS = 1000  # of the planned learning rate, for the forecast

_locks: list = []  # open files: a lock lasts as long as its file


def train(config: Config, say: Callable[[str], None] = print, *, stop_after: int | None = None) -> Path:
    """Train, or go on training, the run that `config` describes; returns its directory.

    `stop_after` ends this process after that step as a kill would (tests of resuming use it).
    """
    ranks = start(config.training.threads)
    say = say if ranks.first else _silent
    config = from_first_rank(lambda: _resolve(config, ranks))
    run = config.run_directory
    from_first_rank(lambda: bool(Dataset(config.data, config.seed, verify=True)))  # before anything is written
    from_first_rank(lambda: _claim(run, config))
    dataset = Dataset(config.data, config.seed, verify=False)
    from_first_rank(lambda: bool(Evaluator(config, dataset)))  # every task is there
    evaluator = Evaluator(config, dataset)
    plan = Plan(config)
    if from_first_rank(lambda: plan.finished(run)):
        say(f"{run}: is finished ({plan.total_steps} steps); nothing to do")
        _release()
        return run

    engine = engines.build(config, ranks)
    state = checkpoint.load_newest(engine, run, ranks, say) or {"step": 0}
    first_step = state["step"]
    header = {
        "run": config.name,
        "params": counting.non_embedding_parameters(config.model),
        "parameters": counting.parameters(config.model),
        "vocabulary": dataset.fingerprint,
        "sequence": config.data.sequence,
        "batch": config.training.batch,
        "flops_per_token": counting.flops_per_token(config.model, config.data.sequence),
        "total_tokens": plan.total_tokens,
    }
    settings = engines.deepspeed_config(config, ranks)
    log = mirror = None
    if ranks.first:
        write_environment(run, ranks.world, ranks.device, first_step)
        files.write_json(run / "deepspeed.json", settings)
        log = RunLog(run, header, first_step)
        mirror = Mirror(config, run, header | {"deepspeed": settings}, say)
    say(_opening(config, plan, dataset, ranks, header, first_step))

    console = Console(plan, header["flops_per_token"], ranks, config.logging.console_seconds, say)
    accumulator = PositionAccumulator(config.data.sequence, ranks.device)
    stepper = Stepper(config, engine, dataset, ranks, accumulator)
    history = _history(run) if ranks.first else []
    pending = None  # the last step's numbers, read one step late so that a GPU is never waited for
    for step in range(first_step + 1, plan.total_steps + 1):
        lr = learning_rate(config.training.schedule, step * plan.step_tokens, plan.total_tokens)
        numbers = stepper(step, lr)
        if pending is not None:
            _log_step(log, mirror, console, history, pending)
        pending = (step, step * plan.step_tokens, lr, console.tick(), *numbers)
        if step in plan.checkpoint_steps:
            _log_step(log, mirror, console, history, pending)
            pending = None
            with console.pause():
                sums = _validate(engine, dataset, ranks, accumulator, config.training.micro_batch)
                scores = evaluator.score(engine, ranks)
                if ranks.first:
                    means = _record(config, plan, step, sums, history, log, mirror, say, evaluator)
                    evaluator.record(scores, run, header, step, step * plan.step_tokens, means, log, mirror, say)
                if step in plan.state_steps and config.checkpoints.save_state != "never":
                    keep = config.checkpoints.save_state == "every"
                    checkpoint.save(engine, run, step, ranks, {"step": step}, keep_older=keep)
        if step == stop_after:
            break
    if ranks.first:
        log.close()
        mirror.close()
        say(console.closing(run))
    _release()
    return run


def _release() -> None:
    while _locks:
        _locks.pop().close()


class Plan:
    """How many steps, and at which of them a checkpoint is made."""

    def __init__(self, config: Config) -> None:
        self.step_tokens = config.training.batch * config.data.sequence
        self.total_steps = -(-config.training.tokens // self.step_tokens)
        self.total_tokens = self.total_steps * self.step_tokens
        self.every = max(1, round(config.checkpoints.every_tokens / self.step_tokens))
        self.save_state = config.checkpoints.save_state
        self.state_steps = {*range(self.every, self.total_steps + 1, self.every), self.total_steps}
        self.checkpoint_steps = set(self.state_steps)
        if config.checkpoints.log_spaced_start:
            powers = (2**k for k in range(self.every.bit_length()))
            self.checkpoint_steps |= {step for step in powers if step <= self.total_steps}

    def finished(self, run: Path) -> bool:
        if self.save_state == "never":
            return (run / "positions" / f"{checkpoint.step_name(self.total_steps)}.parquet").is_file()
        return (run / "checkpoints" / checkpoint.step_name(self.total_steps) / "manifest.json").is_file()


class Stepper:
    """One optimizer step: micro-batches, gradients, update, and the sums of the loss."""

    def __init__(
        self, config: Config, engine, dataset: Dataset, ranks: Ranks, accumulator: PositionAccumulator
    ) -> None:
        self.engine, self.dataset, self.ranks, self.accumulator = engine, dataset, ranks, accumulator
        self.batch, self.micro = config.training.batch, config.training.micro_batch
        self.rounds = self.batch // (self.micro * ranks.world)
        self.document_mask, self.z_loss = config.training.document_mask, config.training.z_loss
        weights = weight_vector(config.training.position_weights, config.data.sequence)
        self.weights = None if weights is None else weights.to(ranks.device)
        self.own_norm = config.training.zero_stage == 0  # DeepSpeed clips there without telling the norm

    def __call__(self, step: int, lr: float) -> tuple[torch.Tensor, float | None, bool]:
        """-> ([loss sum, count] over all ranks, global gradient norm, whether the step was applied)."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        batches = [self._load(step, number) for number in range(self.rounds)]
        scales = self._scales(batches)
        norm, totals = None, torch.zeros(2, dtype=torch.float64, device=self.ranks.device)
        for (tokens, targets, document_ids), scale in zip(batches, scales):
            out = self.engine(tokens, targets, self.weights, document_ids, self.z_loss)
            self.engine.backward(out.loss if scale is None else out.loss * scale)
            if self.own_norm and self.engine.is_gradient_accumulation_boundary():
                norm = get_total_norm([p.grad for p in self.engine.module.parameters() if p.grad is not None])
            self.engine.step()
            self.accumulator.add(out.positions)
            totals += torch.stack([out.positions.loss_sum.sum(), out.positions.count.sum().double()])
        norm = norm if self.own_norm else self.engine.get_global_grad_norm()
        return sum_over_ranks(totals), norm, self.engine.was_step_applied()

    def _load(self, step: int, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """This rank's micro-batch: tokens, targets, and with a document mask the documents' numbers."""
        begin = (step - 1) * self.batch + (number * self.ranks.world + self.ranks.rank) * self.micro
        samples = range(begin, begin + self.micro)
        windows = torch.from_numpy(np.stack([self.dataset.sample(index) for index in samples]))
        tokens, targets = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
        ids = None
        if self.document_mask:
            ids = torch.from_numpy(np.stack([self.dataset.document_ids(index) for index in samples]))
            targets[ids[:, 1:] != ids[:, :-1]] = IGNORED  # nothing before it says which document comes next
            ids = self._to_device(ids[:, :-1].contiguous())
        return self._to_device(tokens), self._to_device(targets), ids

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.ranks.device.type == "cuda":
            return tensor.pin_memory().to(self.ranks.device, non_blocking=True)
        return tensor

    def _scales(self, batches: list) -> list:
        """Factors that make the mean of the micro-batches' means the mean over the global batch.

        All 1 (None) unless documents are masked: then micro-batches differ in how many targets count.
        """
        if not self.document_mask:
            return [None] * len(batches)
        valid = torch.stack([self._weight(targets) for _, targets, _ in batches])
        total = sum_over_ranks(valid.sum())
        return list(valid * (self.rounds * self.ranks.world) / total)

    def _weight(self, targets: torch.Tensor) -> torch.Tensor:
        counted = (targets != IGNORED).double()
        return (counted if self.weights is None else counted * self.weights).sum()


def _log_step(log: RunLog | None, mirror: Mirror | None, console: Console, history: list, pending: tuple) -> None:
    """Write the step's line; a loss that is not a number ends the run on every rank alike."""
    step, tokens, lr, speed, totals, grad_norm, applied = pending
    loss_sum, count = totals.tolist()
    loss = loss_sum / count if count else math.nan
    grad_norm = None if grad_norm is None else float(grad_norm)
    if log is not None:
        row = log.write("train", step=step, tokens=tokens, loss=loss, grad_norm=grad_norm, lr=lr,
                        tokens_per_second=round(speed, 1))  # fmt: skip
        if not applied:
            log.write("skipped", step=step, tokens=tokens, reason="DeepSpeed skipped the step: a gradient not finite")
        mirror.log({key: value for key, value in row.items() if key not in ("kind", "step")})
        history.append((step, loss))
    if not math.isfinite(loss):
        if log is not None:
            log.flush()
        raise RunError(f"the loss of step {step} is {loss}; lower training.schedule.lr or lengthen the warm-up, then run "
                       f"again: it goes on from the last checkpoint")  # fmt: skip
    console.step(step, tokens, loss, grad_norm, lr, applied)


def _history(run: Path) -> list[tuple[int, float]]:
    """(step, loss) of the steps before this start of the run."""
    return [(row["step"], row["loss"]) for row in read_metrics(run) if row["kind"] == "train"]


def _validate(engine, dataset: Dataset, ranks: Ranks, accumulator: PositionAccumulator, batch: int) -> dict:
    """Sums by split over all ranks: the training loss since the last checkpoint, and every validation split."""
    began = time.monotonic()
    sums = reduced({"train": accumulator.take()}) | validate(engine, dataset, ranks, batch)
    return sums | {"seconds": time.monotonic() - began}


def _record(
    config: Config, plan: "Plan", step: int, sums: dict, history: list, log: RunLog, mirror: Mirror, say,
    evaluator: Evaluator,
) -> dict[str, float]:
    """A checkpoint's positions table, its means and the forecast of the end, to the files, to W&B and to the screen.

    Returns the mean loss of each split, nats per token."""
    tokens, seconds = step * plan.step_tokens, sums.pop("seconds")
    table = log.positions(step, tokens, {name: rows(of_split, name) for name, of_split in sums.items()})
    means = {name: float(s[1].sum() / s[0].sum()) for name, s in sums.items() if s[0].sum() > 0}
    log.write("validation", step=step, tokens=tokens, seconds=round(seconds, 3), loss=means, **evaluator.comparable(means))
    mirror.log({"tokens": tokens} | {f"validation/{name}": loss for name, loss in means.items()})
    mirror.positions(table)
    shown = "  ".join(f"{name} {means[name]:.4f}" for name in ("train", "iid", "ood") if name in means)
    if step < plan.total_steps:
        outlook = _outlook(config, plan, history)
        log.write("forecast", step=step, tokens=tokens, **outlook)
        if "loss" in outlook:
            mirror.log({"tokens": tokens} | {f"forecast/{name}": value for name, value in outlook.items()})
            shown += f"  end {outlook['loss']:.3f} [{outlook['low95']:.3f}, {outlook['high95']:.3f}]"
    log.flush()
    say(f"checkpoint  step {step}  tokens {tokens:,}  {shown}  ({seconds:.1f} s)")
    return means


def _outlook(config: Config, plan: "Plan", history: list) -> dict:
    """The training loss expected at the end, with its 95% interval, from the steps so far and the planned schedule."""
    steps, losses = np.array(history).T
    planned = np.unique(np.linspace(1, plan.total_steps, min(plan.total_steps, PLAN_POINTS)).astype(int))
    rates = [learning_rate(config.training.schedule, s * plan.step_tokens, plan.total_tokens) for s in planned]
    return forecast_final(steps, losses, planned, np.array(rates), plan.total_steps)


def _resolve(config: Config, ranks: Ranks) -> Config:
    """The configuration with what only the data set and the world size can tell."""
    training = config.training
    if training.batch % (training.micro_batch * ranks.world):
        raise InputError(f"training.batch {training.batch} is not a multiple of micro_batch {training.micro_batch} x "
                         f"{ranks.world} processes; change one of them")  # fmt: skip
    vocabulary = load_index(Path(config.data.path))["tokenizer"]["vocabulary"]
    size = config.model.vocab_size or padded_vocabulary(vocabulary)
    if size < vocabulary:
        raise InputError(f"model.vocab_size {size} is smaller than the tokenizer's {vocabulary} tokens "
                         f"({config.data.path}); raise it or leave it out")  # fmt: skip
    return config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": size})})


def _claim(run: Path, config: Config) -> None:
    """Make the run directory, or see that it belongs to this configuration and that no one else is at it."""
    path = run / "config.yaml"
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = open(run / ".lock", "w")  # noqa: SIM115 - held until this process ends, however it ends
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{run}: another process is training this run; wait for it or choose another name") from None
    except OSError as error:
        raise InputError(f"{run}: cannot be made or written ({error.strerror}); choose another out") from None
    _locks.append(lock)
    if not path.is_file():
        if any(entry.name != ".lock" for entry in run.iterdir()):
            raise InputError(f"{run}: holds files but no config.yaml; choose another name or empty it")
        write_config(run, config)
        return
    try:
        before = _flat(yaml.safe_load(path.read_text()))
    except (OSError, yaml.YAMLError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())}); choose another name") from None
    now = _flat(config.model_dump(mode="json"))
    for key in sorted(before.keys() | now.keys()):
        volatile = any(key == name or key.startswith(f"{name}.") for name in VOLATILE)
        if not volatile and before.get(key) != now.get(key):
            raise InputError(f"{run}: is a run with {key} = {before.get(key)}, not {now.get(key)}; choose another name "
                             f"or restore the configuration")  # fmt: skip


def _flat(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _opening(config: Config, plan: Plan, dataset: Dataset, ranks: Ranks, header: dict, first_step: int) -> str:
    epochs = dataset.sampler.epochs(plan.total_steps * config.training.batch)
    shown = ", ".join(f"{domain} {epoch:.2g}" for domain, epoch in zip(dataset.domains, epochs))
    where = (
        f"{ranks.world} x {device_name(ranks.device)}, ZeRO {config.training.zero_stage}, {config.training.precision}"
    )
    begin = f"going on after step {first_step}" if first_step else f"{plan.total_steps} steps"
    return (f"{config.name}: {header['params']:,} parameters + {header['parameters'] - header['params']:,} embedding, "
            f"{plan.total_tokens:,} tokens, {begin}; {where}; epochs: {shown}")  # fmt: skip


def _silent(_: str) -> None:
    """What ranks other than the first have to say."""
