"""The verbs that make and follow runs: what each calls, no logic. Imports are inside, so that a verb loads only what it needs."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from emergence_train.errors import InputError, RunError, attempt, printable, tell
from emergence_train.garbage_collection import no_collection


def progress_log(arguments: argparse.Namespace) -> Callable[[str], None]:
    """Progress goes to standard output, or to standard error where the output is a result for machines."""
    stream = sys.stderr if arguments.json else sys.stdout

    def log(line: str) -> None:
        stream.write(f"{line}\n")  # one write: another thread may log too
        stream.flush()

    return log


def verb_prepare(arguments: argparse.Namespace) -> dict | None:
    from emergence_train import config
    from emergence_train.cluster import launcher
    from emergence_train.data.prepare import prepare

    if not launcher.find().is_rank0:
        return None  # rank 0 prepares for all
    path = prepare(config.load(arguments.config, arguments.overrides).data, progress_log(arguments))
    return {"path": str(path)}


def verb_train(arguments: argparse.Namespace) -> dict | None:
    # Before torch is imported: GNU OpenMP's idle threads spin for milliseconds, which on a shared CPU takes time from the
    # other threads. Some tens of microseconds cost little on an idle one (docs/notebook/, OpenMP threads).
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    from emergence_train.faults.signals import StopSignal

    with contextlib.closing(StopSignal()) as stop:  # first: torch takes seconds to import
        from emergence_train.cluster import launcher

        with no_collection():
            from emergence_train import config

        launch = launcher.find()

        def file() -> str:
            if arguments.unread:
                raise InputError(arguments.unread)
            return arguments.config

        loaded, wrong = attempt(lambda: config.load(file(), arguments.overrides))
        if wrong and launch.world == 1:
            raise wrong

        def given() -> config.Config:
            if loaded is None:
                raise wrong or AssertionError("neither a configuration nor an error")
            return loaded

        if isinstance(wrong, InputError) and launch.local_rank == 0:  # each machine says it: one may lack the file
            tell(str(wrong))  # at once: the others, who are to hear of it, may take minutes to come
            wrong.already_reported = True
        with no_collection():
            from emergence_train.parallel import ranks as distributed
            from emergence_train.training.run import train

        try:
            path = train(given, progress_log(arguments), parent=arguments.parent, stop=stop)
        finally:
            distributed.stop()
        return {"run": str(path)} if launch.is_rank0 else None


def verb_evaluate(arguments: argparse.Namespace) -> dict | None:
    from emergence_train.cluster import launcher

    with no_collection():
        from emergence_train.evaluation.offline import evaluate, format_result
        from emergence_train.parallel import ranks as distributed

    first = launcher.find().is_rank0
    log = progress_log(arguments) if first else lambda line: None
    try:
        result = evaluate(
            Path(arguments.run),
            arguments.step,
            arguments.tasks,
            arguments.split,
            log,
            include_path=arguments.include_path,
            replace=arguments.replace,
        )
    finally:
        distributed.stop()
    log(format_result(result))
    return result if first else None


def verb_plan(arguments: argparse.Namespace) -> dict:
    from emergence_train import config
    from emergence_train.planning import planner

    given = config.load(arguments.config, arguments.overrides)
    planned = planner.plan_run(given.training, given.model, given.data, arguments.gpus, arguments.gpu)
    progress_log(arguments)(planner.format_table(planned))
    return planned.as_json()


def verb_ladder(arguments: argparse.Namespace) -> dict:
    from dataclasses import asdict

    from emergence_train.ladder import file, progress, queue, submit

    ladder, log = file.read(arguments.file), progress_log(arguments)
    progress.check_settings(ladder)
    if arguments.slurm and not arguments.status:
        submit.submit(ladder, log)
    elif not arguments.status:
        from emergence_train.ladder.local import Runner, this_machine

        Runner(ladder, this_machine(arguments.jobs), log).run()
    notes = progress.read_notes(ladder)
    try:
        jobs: dict[str, str] | None = queue.queued_of(notes)
    except RunError as error:  # the runs' own directories can be read all the same
        log(str(error))
        jobs = None
    rows = [progress.progress(ladder, row, notes.get(row.run, {}), jobs) for row in ladder.rows]
    log(progress.format_table(rows))
    return {"ladder": ladder.file.name, "out": str(ladder.out), "runs": [asdict(row) for row in rows]}


def verb_config(arguments: argparse.Namespace) -> dict:
    from emergence_train import config, config_listing
    from emergence_train.planning import planner

    resolved = config.load(arguments.config, arguments.overrides)
    parts = resolved.training, resolved.model, resolved.data
    planned = planner.plan_run(*parts, arguments.gpus, arguments.gpu) if arguments.gpu else None
    if not arguments.json:
        print(config_listing.as_yaml(resolved) + planner.as_comments(planned, arguments.config))
    return config_listing.as_json(resolved) | ({"cost": planned.as_json()} if planned else {})


def verb_runs(arguments: argparse.Namespace) -> dict:
    from emergence_train.watch import listing
    from emergence_train.watch.live import console

    unread: list[str] = []
    rows = listing.list_runs([Path(arguments.directory)], unread)
    for problem in unread:
        print(f"left out: {printable(problem)}", file=sys.stderr)
    if not arguments.json:
        out = console(piped=listing.PIPED)
        out.print(listing.table(rows, out))
        for problem in (run.problem for run, _ in rows if run.problem):
            out.print(printable(problem), soft_wrap=True)
    return listing.as_json(rows)


def verb_watch(arguments: argparse.Namespace) -> dict | None:
    from emergence_train.watch import details, live, progress

    places = [Path(run) for run in arguments.runs]
    if arguments.json:
        runs = progress.run_directories(places)
        return {"runs": [details.as_json(details.details(run)) for run in runs]}
    wait = None if arguments.wait is None else 60 * arguments.wait
    live.watch(places, seconds=arguments.seconds, once=arguments.once, wait=wait)
    return None


def verb_generate(arguments: argparse.Namespace) -> dict | None:
    from emergence_train.cluster import launcher

    with no_collection():
        from emergence_train.evaluation.text_samples import continue_texts
        from emergence_train.logging_config import sampling
        from emergence_train.parallel import ranks as distributed

    samples = sampling(arguments.prompt, arguments.tokens, arguments.temperature, arguments.seed)
    try:
        result = continue_texts(Path(arguments.run), samples, arguments.step)
    finally:
        distributed.stop()
    if not launcher.find().is_rank0:
        return None
    for sample in () if arguments.json else result["texts"]:
        print(printable(f"{sample['prompt']}{sample['text']}"))
    return result


def verb_export(arguments: argparse.Namespace) -> dict:
    from dataclasses import asdict

    from emergence_train.convert.hf_export import FILE_BYTES, export, push

    log = progress_log(arguments)
    file_bytes = arguments.shard_bytes or FILE_BYTES
    exported = export(
        Path(arguments.run), arguments.step, Path(arguments.out), log, dtype=arguments.dtype, file_bytes=file_bytes
    )
    return asdict(push(exported, arguments.push, log) if arguments.push else exported)


def verb_import_hf(arguments: argparse.Namespace) -> dict:
    with no_collection():
        from emergence_train.convert.hf_import import ImportOptions, import_hf
        from emergence_train.parallel import ranks as distributed

    options = ImportOptions(
        steps=arguments.steps,
        tokens_per_step=arguments.tokens_per_step,
        texts=arguments.data,
        sequence=arguments.sequence,
        tokenizer=arguments.tokenizer,
        begin_token=arguments.begin_token,
        tasks=arguments.tasks,
    )
    try:
        run = import_hf(arguments.models, Path(arguments.out), options, progress_log(arguments))
    finally:
        distributed.stop()
    return {"run": str(run)}


def verb_sync(arguments: argparse.Namespace) -> dict:
    from emergence_train.tracking.sync import sync

    return {"synced": [sync(Path(run), progress_log(arguments)) for run in arguments.runs]}


def verb_doctor(arguments: argparse.Namespace) -> dict:
    from emergence_train.doctor import doctor

    return doctor(None if arguments.json else progress_log(arguments))
