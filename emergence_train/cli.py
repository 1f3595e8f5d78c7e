"""The command line: its verbs and how they end. Errors are one line; a traceback only with --debug."""

import argparse
import errno
import json
import os
import sys
import traceback
from collections.abc import Callable

from emergence_train import __version__, waiting
from emergence_train.cli_analyses import (
    verb_emergence,
    verb_grok,
    verb_memorise,
    verb_report,
    verb_temporal,
    verb_weights,
)
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
)
from emergence_train.cli_runs import (
    verb_config,
    verb_doctor,
    verb_evaluate,
    verb_export,
    verb_generate,
    verb_import_hf,
    verb_ladder,
    verb_plan,
    verb_prepare,
    verb_runs,
    verb_sync,
    verb_train,
    verb_watch,
)
from emergence_train.errors import InputError, RunError, Stopped, describe, exit_code, tell

DESCRIPTION = "Pretrain language models, log the loss at every position, and forecast where the run is going."
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # of a disk
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
    arguments: argparse.Namespace | None = None
    try:
        arguments = parser.parse_args(argv)
        waiting.wanted = True
        result = arguments.verb(arguments)
        if arguments.json and result is not None:
            print(json.dumps(result))
        return 0
    except (InputError, RunError, Stopped) as error:
        if getattr(arguments, "debug", False):
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
        if getattr(arguments, "debug", False):
            raise
        if isinstance(error, ModuleNotFoundError) and error.name in UNIX:
            tell(f"{argv[0]} needs Linux or macOS (Python's {error.name} is missing here); under Windows use WSL")
            return 2
        if isinstance(error, OSError) and error.errno in NO_ROOM and (reason := _unwritable()):
            tell(f"standard output: {reason}; send it elsewhere. Files that the command has written are whole")
            return 1
        tell(describe(error))
        return exit_code(error)


def _unwritable() -> str | None:
    """Why standard output takes no more (a full disk), which is then closed; None: it does."""
    try:
        os.write(sys.stdout.fileno(), b"\n")  # flushing again succeeds: what could not be written is dropped
        return None
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return error.strerror


def _open_streams() -> None:
    """Let closed streams for output, as a daemon's, lead nowhere: else the next file that is opened has the number of one, and
    what C libraries print goes into it."""
    null = os.open(os.devnull, os.O_RDWR)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            os.dup2(null, number)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115
    if null not in (1, 2):
        os.close(null)


def run() -> None:
    """The console script: run main and exit the process."""
    _open_streams()
    # A lost peer is reported in one line, without fifty of C++ frames
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    code = main()
    if "torch" in sys.modules:
        from emergence_train.parallel.ranks import leave

        leave(code)
    sys.exit(code)


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
        ("prepare", verb_prepare, "make tokenizer, shards and validation sets"),
        ("train", verb_train, "train, or resume, the run of a configuration"),
    ):
        added = verb(name, function, help)
        added.add_argument("config", metavar="CONFIG", help="a YAML file; see configs/")
        added.add_argument("overrides", nargs="*", metavar="a.b=value", help="changes to it")
        if name == "train":
            added.add_argument(
                "--from", dest="parent", metavar="RUN[@STEP]", help="begin a new run from another run's saved state"
            )
    text = "the resolved configuration: every key with its description, * where it is not the default; its cost"
    add_plan(verb("config", verb_config, text), required=False)
    add_plan(verb("plan", verb_plan, "memory, time and cost of a configuration on so many GPUs; needs none"))
    add_ladder(
        verb("ladder", verb_ladder, "train every size, budget, schedule and seed of a file; resume what is left")
    )
    add_grok(
        verb("grok", verb_grok, "train a sweep of many small models: when do they generalise, and from how much data?")
    )
    add_evaluate(verb("evaluate", verb_evaluate, "score a saved checkpoint: tasks and validation loss"))
    add_memorise(verb("memorise", verb_memorise, "what a checkpoint repeats of the text it was trained on"))
    analyses = verbs.add_parser("analyze", help="the analyses of runs and tables").add_subparsers(
        metavar="ANALYSIS", required=True, parser_class=Parser
    )
    added = analyses.add_parser(
        "temporal", parents=[common], help="fit the temporal scaling law and forecast", allow_abbrev=False
    )
    added.set_defaults(verb=verb_temporal)
    add_outlook(added)
    add_out(added)
    add_schema(added, "analysis.temporal.result:TemporalResult")
    added = analyses.add_parser(
        "weights", parents=[common], help="compare runs that weighted their loss by position", allow_abbrev=False
    )
    added.set_defaults(verb=verb_weights)
    added.add_argument("runs", nargs="+", metavar="RUN", help="run directories, uniform weights among them")
    add_out(added)
    add_schema(added, "analysis.position_weights.result:PositionWeightsResult")
    added = analyses.add_parser(
        "emergence",
        parents=[common],
        help="performance as a function of loss: thresholds, size, forecasts",
        allow_abbrev=False,
    )
    added.set_defaults(verb=verb_emergence)
    add_scores(added)
    add_out(added)
    add_schema(added, "analysis.emergence.result:EmergenceResult")
    add_report(verb("report", verb_report, "one self-contained HTML page of runs, tables and logs"))
    add_runs(verb("runs", verb_runs, "the runs of a directory: state, step, loss, forecast, speed, what differs"))
    add_watch(verb("watch", verb_watch, "how runs are doing, from another terminal or node"))
    add_generate(verb("generate", verb_generate, "let a checkpoint's model continue a text"))
    add_export(verb("export", verb_export, "a checkpoint's weights as safetensors, for other programs"))
    imports = verbs.add_parser("import", help="existing models as runs").add_subparsers(
        metavar="KIND", required=True, parser_class=Parser
    )
    text = "models of transformers, each a step: positions, tasks and analyses of existing checkpoints"
    added = imports.add_parser("hf", parents=[common], help=text, description=text, allow_abbrev=False)
    added.set_defaults(verb=verb_import_hf)
    add_import(added)
    added = verb("sync", verb_sync, "update Weights & Biases from the run's own files")
    added.add_argument("runs", nargs="+", metavar="RUN", help="run directories")
    verbs.add_parser("bench", help="the kernels against their peers; see bench --help")
    verb("doctor", verb_doctor, "what this machine has, what will be used, what is missing")
    return parser
