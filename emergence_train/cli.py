"""The command line: one verb per function, no logic. Errors are one line; a traceback only with --debug."""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from emergence_train import __version__
from emergence_train.cli_arguments import (
    Commands,
    Parser,
    add_evaluate,
    add_export,
    add_generate,
    add_grok,
    add_import,
    add_ladder,
    add_memorise,
    add_out,
    add_outlook,
    add_plan,
    add_report,
    add_runs,
    add_schema,
    add_scores,
    add_watch,
    log_options,
)
from emergence_train.collector import no_collection
from emergence_train.errors import InputError, RunError, Stopped, attempt, describe, exit_code, printable, tell

DESCRIPTION = "Pretrain language models, log the loss at every position, and forecast where the run is going."
UNIX = ("fcntl", "resource", "termios")  # modules that only Unix has


def main(argv: list[str] | None = None) -> int:
    """Run a command; return its exit code: 0 done, 1 failed, 2 wrong use or wrong input; errors.py has the others."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["bench"]:  # the kernels' own command line, independent of the framework
        from emergence_kernels.bench import main as bench

        return bench(argv[1:])
    parser = _parser()
    if not argv:
        parser.print_help()  # the error that names what is missing follows
    try:
        arguments = parser.parse_args(argv)
        result = arguments.verb(arguments)
        if arguments.json and result is not None:
            print(json.dumps(result))
        return 0
    except (InputError, RunError, Stopped) as error:
        if arguments.debug:
            traceback.print_exc()
        elif not error.already_reported:
            tell(str(error))
        return error.code
    except KeyboardInterrupt as error:
        tell(describe(error))
        return exit_code(error)
    except BrokenPipeError:  # the reader of our output has gone (head, less)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 1
    except Exception as error:
        if arguments.debug:
            raise
        if isinstance(error, ModuleNotFoundError) and error.name in UNIX:
            tell(f"{argv[0]} needs Linux or macOS (Python's {error.name} is missing here); under Windows use WSL")
            return 2
        tell(describe(error))
        return exit_code(error)


def run() -> None:
    """The console script: run main and exit the process."""
    code = main()
    if "torch" in sys.modules:
        from emergence_train.parallel.ranks import leave

        leave(code)
    sys.exit(code)


def _log(arguments: argparse.Namespace) -> Callable[[str], None]:
    """Progress goes to standard output, or to standard error where the output is a result for machines."""
    stream = sys.stderr if arguments.json else sys.stdout

    def log(line: str) -> None:
        stream.write(f"{line}\n")  # one write: another thread may log too
        stream.flush()

    return log


def _prepare(arguments: argparse.Namespace) -> dict | None:
    from emergence_train import config
    from emergence_train.cluster import launcher
    from emergence_train.data.prepare import prepare

    if not launcher.find().is_rank0:
        return None  # rank 0 prepares for all
    path = prepare(config.load(arguments.config, arguments.overrides).data, _log(arguments))
    return {"path": str(path)}


def _train(arguments: argparse.Namespace) -> dict | None:
    # Before torch is imported: GNU OpenMP's idle threads spin for milliseconds, which on a shared CPU takes time from the
    # other threads. Some tens of microseconds cost little on an idle one (docs/notebook/, OpenMP threads).
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ.setdefault(
        "TORCH_CPP_LOG_LEVEL", "ERROR"
    )  # a lost peer is reported in one line, without fifty of C++ frames
    from emergence_train.cluster import launcher

    with no_collection():
        from emergence_train import config

    launch = launcher.find()
    loaded, wrong = attempt(lambda: config.load(arguments.config, arguments.overrides))
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
        path = train(given, _log(arguments), parent=arguments.parent)
    finally:
        distributed.stop()
    return {"run": str(path)} if launch.is_rank0 else None


def _evaluate(arguments: argparse.Namespace) -> dict | None:
    from emergence_train.cluster import launcher

    with no_collection():
        from emergence_train.evaluation.offline import evaluate, format_result
        from emergence_train.parallel import ranks as distributed

    first = launcher.find().is_rank0
    log = _log(arguments) if first else lambda line: None
    try:
        result = evaluate(
            Path(arguments.run),
            arguments.step,
            arguments.tasks,
            arguments.split,
            log,
            include_path=arguments.include_path,
        )
    finally:
        distributed.stop()
    log(format_result(result))
    return result if first else None


def _plan(arguments: argparse.Namespace) -> dict:
    from emergence_train import config
    from emergence_train.planning import planner

    given = config.load(arguments.config, arguments.overrides)
    planned = planner.plan_run(given.training, given.model, given.data, arguments.gpus, arguments.gpu)
    _log(arguments)(planner.format_table(planned))
    return planned.as_json()


def _ladder(arguments: argparse.Namespace) -> dict:
    from dataclasses import asdict

    from emergence_train.ladder import file, progress, submit

    ladder, log = file.read(arguments.file), _log(arguments)
    if arguments.slurm and not arguments.status:
        submit.submit(ladder, log)
    elif not arguments.status:
        from emergence_train.ladder.local import Runner, this_machine

        Runner(ladder, this_machine(arguments.jobs), log).run()
    notes, queue = progress.read_notes(ladder), submit.queued()
    rows = [progress.progress(ladder, row, notes.get(row.run, {}), queue) for row in ladder.rows]
    log(progress.format_table(rows))
    return {"ladder": ladder.file.name, "out": str(ladder.out), "runs": [asdict(row) for row in rows]}


def _grok(arguments: argparse.Namespace) -> dict:
    _one_thread()
    from emergence_train.analysis.grokking import analyze, output
    from emergence_train.analysis.results import as_json
    from emergence_train.grokking.train import train
    from emergence_train.report.sweep_page import write_page

    log = _log(arguments)
    trained = train(arguments.config, arguments.out, log, arguments.jobs)
    result = output.write(trained.out, analyze(trained.curves, trained.budget), trained.curves, _suffixes(arguments))
    page = write_page(trained.out, trained.name, result, trained.curves)
    log(output.format_table(result))
    log(f"written: {trained.out / 'result.json'}, its tables and figures, and {page}")
    return as_json(result)


def _memorise(arguments: argparse.Namespace) -> dict:
    _one_thread()
    with no_collection():
        import pandas as pd

        from emergence_train.analysis.memorisation import analyze, output
        from emergence_train.evaluation.memorisation import Probe, probe_run, read_texts
        from emergence_train.parallel import ranks as distributed

    probe = Probe(arguments.prefix, arguments.continuation, arguments.items, arguments.seed)
    texts = read_texts(Path(arguments.texts)) if arguments.texts else None
    log = _log(arguments)
    try:
        rows = [probe_run(Path(run), probe, arguments.step, log, texts) for run in _expanded(arguments.runs)]
    finally:
        distributed.stop()
    items = pd.concat(rows)
    result = analyze(items)
    if arguments.out:
        result = output.write(Path(arguments.out), result, items, _suffixes(arguments))
    return _shown(arguments, result, output.format_table(result))


def _expanded(paths: list[str]) -> list[str]:
    """The paths, with a ladder's runs in its place."""
    from emergence_train.ladder.collect import expanded

    return expanded(paths)


def _shown(arguments: argparse.Namespace, result: object, table: str) -> dict:
    """Print an analysis' short table and the path of its files; return the result as JSON."""
    from emergence_train.analysis.results import as_json

    log = _log(arguments)
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


def _temporal(arguments: argparse.Namespace) -> dict:
    _one_thread()
    with no_collection():
        from emergence_train.analysis.outlook import Ahead, parse_schedule
        from emergence_train.analysis.temporal import investigate, output

    analysis = investigate(
        _expanded(arguments.tables),
        fit_fraction=arguments.fit_fraction,
        splits=arguments.split,
        ahead=Ahead(arguments.to_tokens, parse_schedule(arguments.schedule) if arguments.schedule else None),
        options=log_options(arguments),
    )
    result = output.write(Path(arguments.out), analysis, _suffixes(arguments)) if arguments.out else analysis.result
    return _shown(arguments, result, output.format_table(result))


def _weights(arguments: argparse.Namespace) -> dict:
    from emergence_train.analysis import position_weights

    result = position_weights.compare_position_weights(_expanded(arguments.runs))
    if arguments.out:
        result = position_weights.write(Path(arguments.out), result, _suffixes(arguments))
    return _shown(arguments, result, position_weights.format_table(result))


def _emergence(arguments: argparse.Namespace) -> dict:
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
    analysis = investigate(_expanded(arguments.tables), options=options)
    result = output.write(Path(arguments.out), analysis, _suffixes(arguments)) if arguments.out else analysis.result
    return _shown(arguments, result, output.format_table(result))


def _report(arguments: argparse.Namespace) -> dict | None:
    _one_thread()
    with no_collection():
        from emergence_train.report import page, serve

    runs, log = [Path(run) for run in _expanded(arguments.runs)], _log(arguments)
    if arguments.serve is not None:
        serve.serve(runs, arguments.serve, log_options(arguments), log)
        return None
    path = page.report(runs, Path(arguments.out) if arguments.out else None, log_options(arguments))
    log(f"report: {path}")
    return {"report": str(path)}


def _export(arguments: argparse.Namespace) -> dict:
    from dataclasses import asdict

    from emergence_train.convert.hf_export import FILE_BYTES, export, push

    log = _log(arguments)
    file_bytes = arguments.shard_bytes or FILE_BYTES
    exported = export(
        Path(arguments.run), arguments.step, Path(arguments.out), log, dtype=arguments.dtype, file_bytes=file_bytes
    )
    return asdict(push(exported, arguments.push, log) if arguments.push else exported)


def _import_hf(arguments: argparse.Namespace) -> dict:
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
        run = import_hf(arguments.models, Path(arguments.out), options, _log(arguments))
    finally:
        distributed.stop()
    return {"run": str(run)}


def _sync(arguments: argparse.Namespace) -> dict:
    from emergence_train.tracking.sync import sync

    return {"synced": [sync(Path(run), _log(arguments)) for run in arguments.runs]}


def _config(arguments: argparse.Namespace) -> dict:
    from emergence_train import config, config_listing
    from emergence_train.planning import planner

    resolved = config.load(arguments.config, arguments.overrides)
    parts = resolved.training, resolved.model, resolved.data
    planned = planner.plan_run(*parts, arguments.gpus, arguments.gpu) if arguments.gpu else None
    if not arguments.json:
        print(config_listing.as_yaml(resolved) + planner.as_comments(planned, arguments.config))
    return config_listing.as_json(resolved) | ({"cost": planned.as_json()} if planned else {})


def _runs(arguments: argparse.Namespace) -> dict:
    from emergence_train.watch import listing
    from emergence_train.watch.live import console

    rows = listing.list_runs([Path(arguments.directory)])
    if not arguments.json:
        console().print(listing.table(rows, console()))
    return listing.as_json(rows)


def _watch(arguments: argparse.Namespace) -> dict | None:
    from emergence_train.watch import details, live, progress

    places = [Path(run) for run in arguments.runs]
    if arguments.json:
        runs = progress.run_directories(places)
        return {"runs": [details.as_json(details.details(run)) for run in runs]}
    live.watch(places, seconds=arguments.seconds, once=arguments.once)
    return None


def _generate(arguments: argparse.Namespace) -> dict | None:
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


def _doctor(arguments: argparse.Namespace) -> dict:
    from emergence_train.doctor import doctor

    return doctor(None if arguments.json else _log(arguments))


def _parser() -> argparse.ArgumentParser:
    common = Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result for machines")
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    parser = Commands(prog="emergence-train", description=DESCRIPTION, allow_abbrev=False)
    # The deepspeed launcher adds this before the verb; the environment has it too.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"emergence-train {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=Parser)

    def verb(name: str, function: Callable[[argparse.Namespace], dict | None], help: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, parents=[common], help=help, description=help, allow_abbrev=False)
        added.set_defaults(verb=function)
        return added

    for name, function, help in (
        ("prepare", _prepare, "make tokenizer, shards and validation sets"),
        ("train", _train, "train, or resume, the run of a configuration"),
    ):
        added = verb(name, function, help)
        added.add_argument("config", metavar="CONFIG", help="a YAML file; see configs/")
        added.add_argument("overrides", nargs="*", metavar="a.b=value", help="changes to it")
        if name == "train":
            added.add_argument(
                "--from", dest="parent", metavar="RUN[@STEP]", help="begin a new run from another run's saved state"
            )
    text = "the resolved configuration: every key with its description, * where it is not the default; its cost"
    add_plan(verb("config", _config, text), required=False)
    add_plan(verb("plan", _plan, "memory, time and cost of a configuration on so many GPUs; needs none"))
    add_ladder(verb("ladder", _ladder, "train every size, budget, schedule and seed of a file; resume what is left"))
    add_grok(
        verb("grok", _grok, "train a sweep of many small models: when do they generalise, and from how much data?")
    )
    add_evaluate(verb("evaluate", _evaluate, "score a saved checkpoint: tasks and validation loss"))
    add_memorise(verb("memorise", _memorise, "what a checkpoint repeats of the text it was trained on"))
    analyses = verbs.add_parser("analyze", help="the analyses of runs and tables").add_subparsers(
        metavar="ANALYSIS", required=True, parser_class=Parser
    )
    added = analyses.add_parser(
        "temporal", parents=[common], help="fit the temporal scaling law and forecast", allow_abbrev=False
    )
    added.set_defaults(verb=_temporal)
    add_outlook(added)
    add_out(added)
    add_schema(added, "analysis.temporal.result:TemporalResult")
    added = analyses.add_parser(
        "weights", parents=[common], help="compare runs that weighted their loss by position", allow_abbrev=False
    )
    added.set_defaults(verb=_weights)
    added.add_argument("runs", nargs="+", metavar="RUN", help="run directories, uniform weights among them")
    add_out(added)
    add_schema(added, "analysis.position_weights:PositionWeightsResult")
    added = analyses.add_parser(
        "emergence",
        parents=[common],
        help="performance as a function of loss: thresholds, size, forecasts",
        allow_abbrev=False,
    )
    added.set_defaults(verb=_emergence)
    add_scores(added)
    add_out(added)
    add_schema(added, "analysis.emergence.result:EmergenceResult")
    add_report(verb("report", _report, "one self-contained HTML page of runs, tables and logs"))
    add_runs(verb("runs", _runs, "the runs of a directory: state, step, loss, forecast, speed, what differs"))
    add_watch(verb("watch", _watch, "how runs are doing, from another terminal or node"))
    add_generate(verb("generate", _generate, "let a checkpoint's model continue a text"))
    add_export(verb("export", _export, "a checkpoint's weights as safetensors, for other programs"))
    imports = verbs.add_parser("import", help="existing models as runs").add_subparsers(
        metavar="KIND", required=True, parser_class=Parser
    )
    text = "models of transformers, each a step: positions, tasks and analyses of existing checkpoints"
    added = imports.add_parser("hf", parents=[common], help=text, description=text, allow_abbrev=False)
    added.set_defaults(verb=_import_hf)
    add_import(added)
    added = verb("sync", _sync, "update Weights & Biases from the run's own files")
    added.add_argument("runs", nargs="+", metavar="RUN", help="run directories")
    verbs.add_parser("bench", help="the kernels against their peers; see bench --help")
    verb("doctor", _doctor, "what this machine has, what will be used, what is missing")
    return parser
