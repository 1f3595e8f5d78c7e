"""The training loop.

One step: the samples of the global batch are dealt out to the ranks by index, each rank runs its micro-batches forward
and backward, DeepSpeed steps. The loss at every position comes from the same forward pass. At a checkpoint the sums
since the last one and the validation losses become a `positions` table, then the engine's state is saved; so a run that
goes on from a state has every row before it and none after.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch

from emergence_train.analysis.emergence.ability_watch import read_thresholds
from emergence_train.config import Config
from emergence_train.data.dataset import Dataset
from emergence_train.evaluation.at_checkpoint import Evaluator
from emergence_train.faults import flight_recorder
from emergence_train.faults.signals import StopSignal
from emergence_train.faults.watchdog import Watchdog
from emergence_train.parallel.ranks import Ranks, finding_each_other, from_first_rank, start
from emergence_train.training import engine as engines
from emergence_train.training.plan import Plan
from emergence_train.training.session import Session
from emergence_train.training.startup import agree_on, claim, release, resolve


def train(config: Config, say: Callable[[str], None] = print, *, stop_after: int | None = None) -> Path:
    """Train, or go on training, the run that `config` describes; returns its directory.

    `stop_after` ends this process after that step as a kill would (tests of resuming use it). Raises Stopped where the
    process was told to stop and PeerLost where another process of the run is gone.
    """
    flight_recorder.prepare(config.run_directory, torch.cuda.is_available())
    with finding_each_other():
        ranks = start(config.training.threads)
        say = _tireless(say) if ranks.first else _silent
        if ranks.note:
            say(ranks.note)
        stop = StopSignal(ranks.first, say)
        watch = Watchdog(ranks, config.run_directory, config.faults.silent_seconds, config.faults.hang_seconds)
    try:
        return _train(config, ranks, say, stop, watch, stop_after)
    except Exception as error:
        explained = watch.explain(error, lambda: stop.requested)
        if explained is error:
            raise
        raise explained from error
    finally:
        watch.close()
        stop.close()
        release()


def _train(config: Config, ranks: Ranks, say, stop: StopSignal, watch: Watchdog, stop_after: int | None) -> Path:
    watch.at("opening the data")
    agree_on(config, ranks)
    config = from_first_rank(lambda: resolve(config, ranks))
    run = config.run_directory
    from_first_rank(lambda: bool(Dataset(config.data, config.seed, verify=True)))  # before anything is written
    note = from_first_rank(lambda: claim(run, config))
    if note:
        say(note)
    dataset = Dataset(config.data, config.seed, verify=False)
    made: list[Evaluator] = []
    from_first_rank(lambda: made.append(Evaluator(config, dataset)))  # one rank finds out whether every task is there
    evaluator = made[0] if made else Evaluator(config, dataset)
    if config.abilities:
        from_first_rank(lambda: bool(read_thresholds(Path(config.abilities), dataset.fingerprint)))
    plan = Plan(config)
    if from_first_rank(lambda: plan.finished(run, say)):
        say(f"{run}: is finished ({plan.total_steps} steps); nothing to do")
        return run

    watch.at("building the engine")
    if config.training.compile:
        stop.compilations.listen()
    engine = engines.build(config, ranks)
    session = Session(config, plan, dataset, evaluator, ranks, engine, say, stop, watch)
    session.run_to(stop_after or plan.total_steps)
    if not stop_after:
        session.close()
    elif session.recorder is not None:
        session.recorder.log.close()
    return run


def _silent(_: str) -> None:
    """What ranks other than the first have to say."""


def _tireless(say: Callable[[str], None]) -> Callable[[str], None]:
    """The screen may be a file on a full disk, or a pipe whose reader has gone: no reason to end a run."""

    def line(text: str) -> None:
        with contextlib.suppress(OSError):
            say(text)

    return line
