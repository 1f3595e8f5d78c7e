"""The command line: one verb per function, no logic. Errors are one line; a traceback only with --debug."""

import argparse
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from emergence_train import __version__
from emergence_train.collector import no_collection
from emergence_train.errors import InputError, RunError, Stopped, attempt, describe, exit_code, tell

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
        from emergence_train.analysis.logs import options_of
        from emergence_train.analysis.outlook import Ahead, parse_schedule
        from emergence_train.analysis.temporal import investigate, output

    analysis = investigate(
        _expanded(arguments.tables),
        fit_fraction=arguments.fit_fraction,
        splits=arguments.split,
        ahead=Ahead(arguments.to_tokens, parse_schedule(arguments.schedule) if arguments.schedule else None),
        options=options_of(
            arguments.format, arguments.run, arguments.params, arguments.tokens_per_step, arguments.column or []
        ),
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


def _report(arguments: argparse.Namespace) -> dict:
    _one_thread()
    with no_collection():
        from emergence_train.report.page import report

    path = report([Path(run) for run in _expanded(arguments.runs)], Path(arguments.out) if arguments.out else None)
    _log(arguments)(f"report: {path}")
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

    resolved = config.load(arguments.config, arguments.overrides)
    if not arguments.json:
        print(config_listing.as_yaml(resolved))
    return config_listing.as_json(resolved)


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
        print(f"{sample['prompt']}{sample['text']}")
    return result


def _doctor(arguments: argparse.Namespace) -> dict:
    from emergence_train.doctor import doctor

    return doctor(None if arguments.json else _log(arguments))


class _Schema(argparse.Action):
    """Print the JSON schema of an analysis' result.json and exit; `const` is "MODULE:CLASS"."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from emergence_train.analysis.results import schema

        module, _, name = self.const.partition(":")
        result = getattr(importlib.import_module(f"emergence_train.{module}"), name)
        print(json.dumps(schema(result), indent=2))
        parser.exit()


class _OneLine(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"emergence-train: {message}; see {self.prog} --help\n")


class _Commands(_OneLine):
    """The whole command line. Overrides may follow options, where argparse by itself leaves them over."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        arguments, rest = self.parse_known_args(args, namespace)
        wrong = [word for word in rest if word.startswith("-") or "=" not in word]
        if rest and (wrong or not hasattr(arguments, "overrides")):
            self.error(f"unrecognized arguments: {' '.join(wrong or rest)}")
        if rest:
            arguments.overrides = [*arguments.overrides, *rest]
        return arguments


def _add_schema(parser: argparse.ArgumentParser, result: str) -> None:
    text = "print the JSON schema of result.json, with units and meanings, and exit"
    parser.add_argument("--schema", action=_Schema, nargs=0, const=result, help=text)


def _count(text: str) -> int:
    """A positive whole number, as 2e9 or 2_000_000_000 too."""
    value = float(text)
    if not value.is_integer() or value < 1:
        raise ValueError
    return int(value)


_count.__name__ = "count"  # of argparse's message


def _add_out(parser: argparse.ArgumentParser) -> None:
    """Where an analysis writes."""
    parser.add_argument("--out", metavar="DIR", help="where result.json, CSV tables and figures (PNG, SVG) go")
    parser.add_argument("--pdf", action="store_true", help="with --out: figures as PDF too")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    from emergence_train.models.gpus import GPUS

    parser.add_argument("config", metavar="CONFIG", help="a YAML file; see configs/")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="changes to it")
    parser.add_argument("--gpus", type=_count, required=True, metavar="N", help="GPUs in all, in nodes of eight")
    parser.add_argument("--gpu", choices=GPUS, required=True, metavar="KIND", help=f"one of {', '.join(GPUS)}")


def _steps(text: str) -> list[int]:
    """N,N,..."""
    return [_count(part) for part in text.split(",")]


_steps.__name__ = "steps N,N,..."


def _add_import(parser: argparse.ArgumentParser) -> None:
    text = "directories of save_pretrained, or names on the hub; NAME@REVISION; a directory of checkpoint directories"
    parser.add_argument("models", nargs="+", metavar="DIR_OR_NAME", help=text)
    parser.add_argument("--out", required=True, metavar="RUN", help="the run directory that is written, or added to")
    text = "their steps (default: as in step1000 or checkpoint-1000, of revisions and directories)"
    parser.add_argument("--steps", type=_steps, metavar="N,N,...", help=text)
    parser.add_argument("--tokens-per-step", type=_count, metavar="N", help="tokens that a step was trained on")
    text = "a configuration whose data are taken, or text files (default: the embedded sample)"
    parser.add_argument("--data", nargs="+", metavar="CONFIG_OR_TEXT", help=text)
    text = "tokens of a validation sequence (default: 1024, or what the model takes)"
    parser.add_argument("--sequence", type=_count, metavar="N", help=text)
    parser.add_argument("--tokenizer", metavar="DIR_OR_NAME", help="where the model's directory has none")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="tasks to score, as evaluate has them")


def _add_outlook(parser: argparse.ArgumentParser) -> None:
    """What lies ahead of the runs, and how logs of others are read."""
    parser.add_argument("--to-tokens", type=_count, metavar="N", help="forecast to so many trained tokens")
    text = "the whole run's learning rate: KIND,lr=..,warmup=TOKENS,final=RATIO[,decay=TOKENS]"
    parser.add_argument("--schedule", metavar="SCHEDULE", help=text)
    text = "of a log: auto, table (ours), tensorboard, hf, wandb, jsonl, megatron, nanogpt or csv (default: auto)"
    parser.add_argument("--format", default="auto", metavar="FORMAT", help=text)
    parser.add_argument("--run", metavar="NAME", help="of a log: the run's name, or which of its runs to take")
    parser.add_argument("--params", type=_count, metavar="N", help="of a log: non-embedding parameters")
    parser.add_argument("--tokens-per-step", type=_count, metavar="N", help="of a log: tokens an optimizer step")
    text = "of a log: what it calls run, params, step, tokens, lr or loss, as loss=eval/loss (may be repeated)"
    parser.add_argument("--column", action="append", metavar="OURS=NAME", help=text)


def _add_scores(parser: argparse.ArgumentParser) -> None:
    """How task results of other programs are read."""
    text = "of results: auto, evaluations (ours), lm-eval, olmes, helm or csv (default: auto)"
    parser.add_argument("--format", default="auto", metavar="FORMAT", help=text)
    parser.add_argument("--run", metavar="NAME", help="of results: the run's name")
    text = "of results: non-embedding parameters, of every run or of one (may be repeated)"
    parser.add_argument("--params", action="append", metavar="[RUN=]N", help=text)
    parser.add_argument("--tokens-per-step", type=_count, metavar="N", help="of results: tokens an optimizer step")
    text = "of results: what they call run, params, step, tokens, loss, task, metric, value, ... (may be repeated)"
    parser.add_argument("--column", action="append", metavar="OURS=NAME", help=text)
    text = "of results: the loss by steps, a log or a run directory; or a metric among the results"
    parser.add_argument("--loss", metavar="FILE_OR_TASK/METRIC", help=text)


def _parser() -> argparse.ArgumentParser:
    common = _OneLine(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result for machines")
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    parser = _Commands(prog="emergence-train", description=DESCRIPTION, allow_abbrev=False)
    # The deepspeed launcher adds this before the verb; the environment has it too.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"emergence-train {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=_OneLine)

    def verb(name: str, function: Callable[[argparse.Namespace], dict | None], help: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, parents=[common], help=help, description=help, allow_abbrev=False)
        added.set_defaults(verb=function)
        return added

    for name, function, help in (
        ("prepare", _prepare, "make tokenizer, shards and validation sets"),
        ("train", _train, "train, or resume, the run of a configuration"),
        (
            "config",
            _config,
            "the resolved configuration: every key with its description, * where it is not the default",
        ),
    ):
        added = verb(name, function, help)
        added.add_argument("config", metavar="CONFIG", help="a YAML file; see configs/")
        added.add_argument("overrides", nargs="*", metavar="a.b=value", help="changes to it")
        if name == "train":
            added.add_argument(
                "--from", dest="parent", metavar="RUN[@STEP]", help="begin a new run from another run's saved state"
            )
    _add_plan(verb("plan", _plan, "memory, time and cost of a configuration on so many GPUs; needs none"))
    added = verb("ladder", _ladder, "train every size, budget, schedule and seed of a file; resume what is left")
    added.add_argument("file", metavar="FILE", help="a YAML file; see configs/ladders/")
    added.add_argument("--slurm", action="store_true", help="submit each run as a job instead of running it here")
    added.add_argument(
        "--status", action="store_true", help="start nothing: state, step, loss and forecast of each run"
    )
    added.add_argument(
        "--jobs", type=_count, metavar="N", help="here: at most N runs at a time (default: what there is room for)"
    )
    added = verb("evaluate", _evaluate, "score a saved checkpoint: tasks and validation loss")
    added.add_argument("run", metavar="RUN", help="a run directory")
    added.add_argument("--step", type=int, metavar="S", help="the checkpoint's step (default: the newest)")
    text = "tasks of the run, known ones, or NAME=ITEMS.jsonl (default: the run's)"
    added.add_argument("--tasks", nargs="+", metavar="TASK", help=text)
    text = "a directory of lm-eval's task files, for tasks of your own named lm-eval/NAME"
    added.add_argument("--include-path", metavar="DIR", help=text)
    added.add_argument("--split", action="append", metavar="NAME", help="only this validation split (may be repeated)")
    analyses = verbs.add_parser("analyze", help="the analyses of runs and tables").add_subparsers(
        metavar="ANALYSIS", required=True, parser_class=_OneLine
    )
    added = analyses.add_parser(
        "temporal", parents=[common], help="fit the temporal scaling law and forecast", allow_abbrev=False
    )
    added.set_defaults(verb=_temporal)
    text = "run directories, Parquet or CSV tables, logs of other frameworks"
    added.add_argument("tables", nargs="+", metavar="TABLE_OR_RUN", help=text)
    added.add_argument(
        "--fit-fraction", type=float, metavar="F", help="observe only this share of each run, score on the rest"
    )
    added.add_argument("--split", action="append", metavar="NAME", help="only this split (may be repeated)")
    _add_outlook(added)
    _add_out(added)
    _add_schema(added, "analysis.temporal.result:TemporalResult")
    added = analyses.add_parser(
        "weights", parents=[common], help="compare runs that weighted their loss by position", allow_abbrev=False
    )
    added.set_defaults(verb=_weights)
    added.add_argument("runs", nargs="+", metavar="RUN", help="run directories, uniform weights among them")
    _add_out(added)
    _add_schema(added, "analysis.position_weights:PositionWeightsResult")
    added = analyses.add_parser(
        "emergence",
        parents=[common],
        help="performance as a function of loss: thresholds, size, forecasts",
        allow_abbrev=False,
    )
    added.set_defaults(verb=_emergence)
    text = "run directories, Parquet or CSV tables, results of lm-eval, OLMES or HELM"
    added.add_argument("tables", nargs="+", metavar="TABLE_OR_RUN", help=text)
    _add_scores(added)
    _add_out(added)
    _add_schema(added, "analysis.emergence.result:EmergenceResult")
    added = verb("report", _report, "one self-contained HTML page of one or more runs")
    added.add_argument("runs", nargs="+", metavar="RUN", help="run directories")
    added.add_argument("--out", metavar="DIR", help="where report.html goes (default: report/ in the first run)")
    added = verb("runs", _runs, "the runs of a directory: state, step, loss, forecast, speed, what differs")
    added.add_argument(
        "directory", nargs="?", default="runs", metavar="DIR", help="holds run directories (default: runs)"
    )
    added = verb("watch", _watch, "how runs are doing, from another terminal or node")
    added.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or directories of them")
    added.add_argument("--once", action="store_true", help="show it once and exit; --json does too")
    text = "between two looks (default: 2; without a terminal a line every 30)"
    added.add_argument("--seconds", type=float, metavar="S", help=text)
    added = verb("generate", _generate, "let a checkpoint's model continue a text")
    added.add_argument("run", metavar="RUN", help="a run directory")
    added.add_argument(
        "--prompt", action="append", required=True, metavar="TEXT", help="its beginning (may be repeated)"
    )
    added.add_argument("--step", type=int, metavar="S", help="the checkpoint's step (default: the newest)")
    added.add_argument("--tokens", type=_count, default=64, metavar="N", help="tokens to add, at most (default: 64)")
    text = "of the draws; 0: the likeliest token each time (default: 0.8)"
    added.add_argument("--temperature", type=float, default=0.8, metavar="T", help=text)
    added.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    added = verb("export", _export, "a checkpoint's weights as safetensors, for other programs")
    added.add_argument("run", metavar="RUN", help="a run directory")
    added.add_argument("--step", type=int, metavar="S", help="of the checkpoint (default: the newest complete one)")
    added.add_argument("--format", choices=["hf"], default="hf", help="hf: a directory that transformers loads")
    dtypes = ("float32", "bfloat16", "float16", "fp32", "bf16", "fp16")
    added.add_argument("--dtype", choices=dtypes, default="float32", help="of the weights (default: float32)")
    added.add_argument("--shard-bytes", type=_count, metavar="N", help="of a file at most (default: 5e9)")
    text = "also upload it to the Hugging Face hub, as a private model"
    added.add_argument("--push", metavar="NAME", help=text)
    added.add_argument("out", metavar="DIR", help="a new or empty directory")
    imports = verbs.add_parser("import", help="existing models as runs").add_subparsers(
        metavar="KIND", required=True, parser_class=_OneLine
    )
    text = "models of transformers, each a step: positions, tasks and analyses of existing checkpoints"
    added = imports.add_parser("hf", parents=[common], help=text, description=text, allow_abbrev=False)
    added.set_defaults(verb=_import_hf)
    _add_import(added)
    added = verb("sync", _sync, "update Weights & Biases from the run's own files")
    added.add_argument("runs", nargs="+", metavar="RUN", help="run directories")
    verbs.add_parser("bench", help="the kernels against their peers; see bench --help")
    verb("doctor", _doctor, "what this machine has, what will be used, what is missing")
    return parser
