"""The verbs that analyse runs, tables and logs: what each calls, no logic. Imports are inside, as those of cli_runs."""

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from emergence_train.cli_arguments import log_options, reading
from emergence_train.cli_runs import progress_log
from emergence_train.errors import tell
from emergence_train.garbage_collection import no_collection


@contextlib.contextmanager
def _expanded(paths: list[str]) -> Iterator[list[str]]:
    """The paths, with a ladder's runs in its place, a pipe as a file until the block ends, and without runs that have no losses
    beside others."""
    from emergence_train.analysis.logs.streams import as_files
    from emergence_train.ladder.collect import expanded
    from emergence_train.recorder.tables import POSITIONS, has_rows

    with as_files(paths) as files:
        runs = expanded(files)
        kept = [run for run in runs if has_rows(POSITIONS, Path(run))]
        for run in runs if kept else ():
            if run not in kept:
                tell(f"{run}: left out, its checkpoints have no losses (a run that diverged has none that are finite)")
        yield kept or runs


def _shown(arguments: argparse.Namespace, result: object, table: str) -> dict:
    """Print an analysis' short table and the path of its files; return the result as JSON."""
    from emergence_train.analysis.results import as_json

    log = progress_log(arguments)
    log(table)
    if arguments.out:
        log(f"written: {Path(arguments.out) / 'result.json'} and its tables and figures")
    return as_json(result)


def _suffixes(arguments: argparse.Namespace) -> tuple[str, ...]:
    from emergence_train.analysis.drawing import DEFAULT, WITH_PDF

    return WITH_PDF if arguments.pdf else DEFAULT


def _one_thread() -> None:
    """Keep numpy's matrix products on one thread: those of the analyses are small, and a second waits for each in a busy loop."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def verb_grok(arguments: argparse.Namespace) -> dict:
    _one_thread()
    from emergence_train.analysis.grokking import analyze, output
    from emergence_train.analysis.results import as_json
    from emergence_train.grokking.train import train
    from emergence_train.report.sweep_page import write_page

    log = progress_log(arguments)
    trained = train(arguments.config, arguments.out, log, arguments.jobs)
    result = output.write(trained.out, analyze(trained.curves, trained.budget), trained.curves, _suffixes(arguments))
    page = write_page(trained.out, trained.name, result, trained.curves)
    log(output.format_table(result))
    log(f"written: {trained.out / 'result.json'}, its tables and figures, and {page}")
    return as_json(result)


def verb_memorise(arguments: argparse.Namespace) -> dict | None:
    from emergence_train.cluster import launcher

    _one_thread()
    with no_collection():
        import pandas as pd

        from emergence_train.analysis.memorisation import analyze, output
        from emergence_train.evaluation.memorisation import Probe, probe_run, read_texts
        from emergence_train.parallel import ranks as distributed
        from emergence_train.recorder.naming import names_of
        from emergence_train.report.memorise_page import write_page

    probe = Probe(arguments.prefix, arguments.continuation, arguments.items, arguments.seed, least=2)
    texts = read_texts(Path(arguments.texts)) if arguments.texts else None
    is_rank0 = launcher.find().is_rank0
    log = progress_log(arguments) if is_rank0 else lambda line: None
    try:
        with _expanded(arguments.runs) as given:
            runs = list(dict.fromkeys(map(Path, given)))
        rows = {run: probe_run(run, probe, arguments.step, log, texts) for run in runs}
    finally:
        distributed.stop()
    if not is_rank0:
        return None  # rank 0 has all rows, and writes for all
    names = names_of(runs)  # several may share one: their rows would be one run's
    items = pd.concat([table.assign(run=names[run]) if run in names else table for run, table in rows.items()])
    result = analyze(items)
    if arguments.out:
        result = output.write(Path(arguments.out), result, items, _suffixes(arguments))
        write_page(Path(arguments.out), result)
    return _shown(arguments, result, output.format_table(result))


def verb_temporal(arguments: argparse.Namespace) -> dict:
    _one_thread()
    with no_collection():
        from emergence_train.analysis.outlook import Ahead, parse_schedule
        from emergence_train.analysis.temporal import investigate, output

    ahead = Ahead(arguments.to_tokens, parse_schedule(arguments.schedule) if arguments.schedule else None)
    with _expanded(arguments.tables) as tables:
        analysis = investigate(
            tables,
            fit_fraction=arguments.fit_fraction,
            splits=arguments.split,
            ahead=ahead,
            options=log_options(arguments),
        )
    result = output.write(Path(arguments.out), analysis, _suffixes(arguments)) if arguments.out else analysis.result
    return _shown(arguments, result, output.format_table(result))


def verb_weights(arguments: argparse.Namespace) -> dict:
    from emergence_train.analysis.position_weights import compare_position_weights, output

    with _expanded(arguments.runs) as runs:
        result = compare_position_weights(runs)
    if arguments.out:
        result = output.write(Path(arguments.out), result, _suffixes(arguments))
    return _shown(arguments, result, output.format_table(result))


def verb_emergence(arguments: argparse.Namespace) -> dict:
    _one_thread()
    with no_collection():
        from emergence_train.analysis.emergence import investigate, output
        from emergence_train.analysis.scores import options_of

    options = options_of(
        arguments.format,
        arguments.run,
        arguments.params or [],
        arguments.tokens_per_step,
        arguments.column or [],
        arguments.loss,
    )
    with _expanded(arguments.tables) as tables:
        analysis = investigate(tables, options=options)
    result = output.write(Path(arguments.out), analysis, _suffixes(arguments)) if arguments.out else analysis.result
    return _shown(arguments, result, output.format_table(result))


def verb_report(arguments: argparse.Namespace) -> dict | None:
    _one_thread()
    with no_collection():
        from emergence_train.report import page, serve

    log = progress_log(arguments)
    with _expanded(arguments.runs) as given:
        runs = [Path(run) for run in given]
        if arguments.serve is not None:
            serve.serve(runs, arguments.serve, reading(arguments), log)
            return None
        path = page.report(runs, Path(arguments.out) if arguments.out else None, reading(arguments))
    log(f"report: {path}")
    return {"report": str(path)}
