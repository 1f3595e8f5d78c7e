"""`emergence-train train`: join the process group, open the data, build the engine, and run a session.

Errors that end a run are handled here: what each rank reports and raises.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch

from emergence_train import files
from emergence_train.config import Config, Samples, TaskConfig
from emergence_train.data import identity, lineage, recipe
from emergence_train.data.dataset import Dataset
from emergence_train.data_config import Data
from emergence_train.errors import RunError, attempt, describe, exit_code
from emergence_train.evaluation.at_checkpoint import Evaluator
from emergence_train.faults import flight_recorder, report_claim
from emergence_train.faults.signals import StopSignal
from emergence_train.faults.watchdog import Watchdog
from emergence_train.garbage_collection import no_collection
from emergence_train.parallel.mesh import Mesh, sequence_parallel
from emergence_train.parallel.node_check import check_nodes
from emergence_train.parallel.ranks import broadcast_from_rank0, on_every_rank, order_sums, rendezvous, start
from emergence_train.recorder.layout import resumption
from emergence_train.recorder.sessions import end_session
from emergence_train.tracking import tensorboard
from emergence_train.training import auto_micro_batch, branch, fp8, nvme
from emergence_train.training import engine as engines
from emergence_train.training.checkpoint_plan import Plan
from emergence_train.training.console import Console
from emergence_train.training.null_writer import LineWriter, NullWriter
from emergence_train.training.observers import RunSetup
from emergence_train.training.rank_log import RankLog, in_time
from emergence_train.training.run_directory import begun, claim, keep_data_path, other_items, other_tasks
from emergence_train.training.session import Session
from emergence_train.training.startup import agree_on, resolve, run_header, startup_line

RECORD_SECONDS = 5.0  # for the record of how a run ended, where a thread ends the process


def train(
    config: Config | Callable[[], Config],
    log: Callable[[str], None] = print,
    *,
    parent: str | None = None,
    stop_after: int | None = None,
    stop: StopSignal | None = None,
) -> Path:
    """Train, or resume, the run that `config` describes; returns its directory.

    `config` may be a function that reads it: where that fails on one rank, its error becomes that of all, with its exit code.
    `parent`, as "RUN" or "RUN@STEP": a new run begins from that state (branch.py).

    `stop`: what listens to signals already; by default from now on.

    `stop_after` ends this process after that step as a kill would (for tests of resuming). Raises Stopped where the process
    received a signal to stop and PeerLost where another process of the run is lost.
    """
    stop = stop or StopSignal()
    with contextlib.ExitStack() as failing, rendezvous():
        failing.callback(stop.close)
        read, wrong = attempt(config) if callable(config) else (config, None)
        if read:
            flight_recorder.prepare(read.run_directory, torch.cuda.is_available())
        mesh = start(read.training.threads if read else None)
        config = on_every_rank(lambda: _given(read, wrong))
        lines = RankLog(mesh.world.rank, log)
        if mesh.note:
            lines(mesh.note)
        watch = Watchdog(mesh, config.run_directory, config.faults.silent_seconds, config.faults.hang_seconds)
        directory = config.run_directory

        def ended(words: str, code: int) -> None:
            lines.ended(words, code)
            if mesh.is_rank0:
                in_time(lambda: _record_end(directory, code, words), RECORD_SECONDS)

        watch.on_end = ended
        stop.join(mesh.is_rank0, lines, watch.leave, ended)
        failing.pop_all()
    held = contextlib.ExitStack()
    try:
        run = _train(config, mesh, lines, stop, watch, held, parent, stop_after)
        if mesh.is_rank0 and stop_after is None:
            _record_end(run, 0, "done")
        return run
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and (resumed := resumption(directory)):
            error.args = (f"it {resumed}",)
        explained = watch.explain(error, lambda: stop.requested)
        if mesh.is_rank0:
            _record_end(directory, exit_code(explained), describe(explained))
        lines.ended(describe(explained), exit_code(explained))
        if explained is error:
            raise
        raise explained from error
    finally:
        watch.close()
        stop.close()
        held.close()
        lines.close()


def _record_end(run: Path, code: int, reason: str) -> None:
    """Write down how this start ended, for those who watch; a disk that does not take it changes nothing."""
    with contextlib.suppress(RunError, OSError):
        end_session(run, code, reason)


def _given(config: Config | None, wrong: Exception | None) -> Config:
    if config is None:
        raise wrong or AssertionError("neither a configuration nor an error")
    return config


def _train(
    config: Config,
    mesh: Mesh,
    log: RankLog,
    stop: StopSignal,
    watch: Watchdog,
    held: contextlib.ExitStack,
    parent: str | None,
    stop_after: int | None,
) -> Path:
    """What one rank does for all, or each does for itself, ends alike on all of them; what fails between two agreements is told
    to the others by the watchdog, with its exit code.

    `held`: what must be kept until the process has nothing more to write: the run's lock.
    """
    watch.at("opening the data")
    agree_on(config, mesh)
    mesh = sequence_parallel(mesh, config.training.sequence_parallel)
    device = auto_micro_batch.smallest_device(mesh)
    config, resolved = broadcast_from_rank0(lambda: resolve(config, mesh, device))
    if resolved:
        log(resolved)
    run = config.run_directory
    if config.logging.tensorboard:
        broadcast_from_rank0(tensorboard.check)
    broadcast_from_rank0(lambda: _check_data(config.data, config.seed, run))  # before anything is written
    note = broadcast_from_rank0(lambda: claim(run, config, held))
    if mesh.is_rank0:
        report_claim.forget_older(run, mesh.launch_id)
    if config.logging.every_rank:
        log.open(run)
    if note:
        log(note)
    dataset = on_every_rank(lambda: Dataset(config.data, config.seed, verify=False))
    broadcast_from_rank0(lambda: identity.keep(run, dataset))
    broadcast_from_rank0(lambda: keep_data_path(run, config.data))
    evaluator = _evaluator(config.tasks, config.samples, dataset)
    if abilities := config.abilities:
        from emergence_train.analysis.emergence.ability_watch import read_thresholds

        broadcast_from_rank0(lambda: bool(read_thresholds(Path(abilities), dataset.fingerprint)))
    plan = Plan(config.training, config.checkpoints, config.data.sequence)
    first = broadcast_from_rank0(lambda: branch.begin(run, config.model, config.training, plan, dataset, parent))
    if broadcast_from_rank0(lambda: plan.finished(run, log)):
        changed = broadcast_from_rank0(
            lambda: other_tasks(run, config.tasks, lambda: evaluator.other_items(run / "evaluations"))
        )
        log(f"{run}: is finished ({plan.total_steps} steps); nothing to do{changed}")
        return run

    for warning in broadcast_from_rank0(lambda: other_items(run, evaluator)):
        log(warning)
    broadcast_from_rank0(lambda: files.check_writable(run, "out"))
    watch.at("checking the nodes")
    check_nodes(mesh, run, dataset.a_shard, config.faults.node_check, log)
    watch.at("building the engine")
    order_sums(config.training.deterministic)
    session, header = _build_session(config, mesh, plan, dataset, evaluator, stop, watch, log, first, held)
    step = session.restore()
    log(startup_line(config.training, plan, dataset, mesh, header, step))
    try:
        session.run_from(step, stop_after or plan.total_steps)
    except torch.OutOfMemoryError as error:
        raise auto_micro_batch.out_of_memory(config.training, config.model, mesh) from error
    if stop_after:
        session.writer.close()
    else:
        session.close()
    return run


def _check_data(data: Data, seed: int, run: Path) -> None:
    """Raise InputError where the data are damaged, or for a new run were prepared from another section."""
    Dataset(data, seed, verify=True)
    if not begun(run):
        recipe.check(data)


def _build_session(
    config: Config,
    mesh: Mesh,
    plan: Plan,
    dataset: Dataset,
    evaluator: Evaluator,
    stop: StopSignal,
    watch: Watchdog,
    log: Callable[[str], None],
    first: int,
    held: contextlib.ExitStack,
) -> tuple[Session, dict]:
    """The session with its engine and, on rank 0, its writer; and the run's header."""
    run = config.run_directory
    if config.training.compile:
        stop.compilations.listen()
    graphs = engines.graphs_possible(config.training, config.faults, mesh)
    training = nvme.in_own_folder(config.training, config.model.parameters(), run, mesh, held)
    engine = engines.build(config.model, training, config.seed, mesh, graphs=graphs)
    if config.training.linears == "fp8":
        log(fp8.describe(engine.module, mesh.device))
    begun_from = broadcast_from_rank0(lambda: lineage.parent_of(run))
    header = run_header(config.name, config.model, config.training, plan, dataset, begun_from)
    console = Console(plan, header["flops_per_token"], mesh, config.logging.console_seconds, log)
    writer: NullWriter = LineWriter(console) if config.logging.every_rank else NullWriter()
    if mesh.is_rank0:
        with no_collection():
            from emergence_train.training.recording import RunWriter  # with pandas and pyarrow

        setup = RunSetup(
            directory=run,
            schedule=config.training.schedule,
            abilities=config.abilities,
            logging=config.logging,
            resolved=config.model_dump(mode="json"),
            deepspeed=engines.deepspeed_config(config.training, mesh, header["parameters"]),
            plan=plan,
            header=header,
            evaluator=evaluator,
            console=console,
            log=log,
        )
        writer = RunWriter(setup, mesh)
    session = Session(
        run,
        config.training,
        config.checkpoints,
        config.faults,
        plan=plan,
        dataset=dataset,
        evaluator=evaluator,
        mesh=mesh,
        engine=engine,
        writer=writer,
        console=console,
        stop=stop,
        watch=watch,
        graphs=graphs,
        log=log,
        first=first,
    )
    return session, header


def _evaluator(tasks: list[TaskConfig], samples: Samples, dataset: Dataset) -> Evaluator:
    """The evaluator of every rank; rank 0 first checks that every task is available."""

    def build() -> Evaluator:
        return Evaluator(tasks, dataset, samples)

    evaluators: list[Evaluator] = []
    broadcast_from_rank0(lambda: evaluators.append(build()))
    return on_every_rank(lambda: evaluators[0] if evaluators else build())
