"""The arguments of the command line's verbs: what each takes and how it is read. The verbs: cli_runs.py and cli_analyses.py."""

import argparse
import importlib
import json
import os
import sys
from typing import Any, NoReturn

from emergence_train.input_files import read_text

SERVE_PORT = 8008


class Schema(argparse.Action):
    """Print the JSON schema of an analysis' result.json and exit; `const` is "MODULE:CLASS"."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from emergence_train.analysis.results import schema

        module, _, name = self.const.partition(":")
        result = getattr(importlib.import_module(f"emergence_train.{module}"), name)
        print(json.dumps(schema(result), indent=2))
        parser.exit()


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"emergence-train: {message}; see {self.prog} --help\n")


class Commands(Parser):
    """The whole command line. Overrides may follow options, where argparse by itself leaves them over."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        words, unread = self._read_file(list(sys.argv[1:] if args is None else args))
        arguments, rest = self.parse_known_args(words, namespace)
        arguments.unread = unread
        wrong = [word for word in rest if word.startswith("-") or "=" not in word]
        if rest and (wrong or not hasattr(arguments, "overrides")):
            self.error(f"unrecognized arguments: {' '.join(wrong or rest)}")
        if rest:
            arguments.overrides = [*arguments.overrides, *rest]
        return arguments

    def _read_file(self, words: list[str]) -> tuple[list[str], str | None]:
        """`train @FILE`: with the words of the file, one a line. %a in its name is the number in Slurm's job array, which the
        batch script may have filled in.

        Also why it cannot be read, for the verb to raise: one rank that ends here would leave the others waiting for it.
        """
        at = 0
        while words[at : at + 1] and words[at].startswith("-"):
            at += 2 if words[at] == "--local_rank" else 1
        at += 1
        if words[at - 1 : at] != ["train"] or not any(word.startswith("@") for word in words[at : at + 1]):
            return words, None
        path = words[at][1:].replace("%a", os.environ.get("SLURM_ARRAY_TASK_ID", "%a"))
        try:
            return [*words[:at], *read_text(path).splitlines(), *words[at + 1 :]], None
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            return (
                words,
                f"{path}: the file of arguments cannot be read ({reason}); train @FILE takes one, a word a line",
            )


def add_schema(parser: argparse.ArgumentParser, result: str) -> None:
    text = "print the JSON schema of result.json, with units and meanings, and exit"
    parser.add_argument("--schema", action=Schema, nargs=0, const=result, help=text)


def count(text: str) -> int:
    """A positive whole number, as 2e9 or 2_000_000_000 too."""
    value = float(text)
    if not value.is_integer() or value < 1:
        raise ValueError
    return int(value)


def seed(text: str) -> int:
    """Of random numbers: a whole number, 0 too."""
    return count(text) if text != "0" else 0


def add_out(parser: argparse.ArgumentParser) -> None:
    """Where an analysis writes."""
    parser.add_argument("--out", metavar="DIR", help="where result.json, CSV tables and figures (PNG, SVG) go")
    parser.add_argument("--pdf", action="store_true", help="with --out: figures as PDF too")


def add_plan(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """A configuration and, for its cost, the GPUs."""
    from emergence_train.models.devices import GPUS

    parser.add_argument("config", metavar="CONFIG", help="a YAML file; see configs/")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="changes to it")
    text = "GPUs in all, in nodes of eight" + ("" if required else " (default: 1)")
    parser.add_argument("--gpus", type=count, required=required, default=1, metavar="N", help=text)
    text = f"one of {', '.join(GPUS)}" + ("" if required else "; the cost on it is shown too")
    parser.add_argument("--gpu", choices=GPUS, required=required, metavar="KIND", help=text)


def add_grok(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file; see configs/grok/")
    text = "where its runs, result.json, tables, figures and page go (default: runs/NAME); the same command resumes"
    parser.add_argument("--out", metavar="DIR", help=text)
    text = "processes at a time, each of which trains a stack of runs (default: one on each CPU)"
    parser.add_argument("--jobs", type=count, metavar="N", help=text)
    parser.add_argument("--pdf", action="store_true", help="figures as PDF too")
    add_schema(parser, "analysis.grokking.result:GrokkingResult")


def add_memorise(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories")
    parser.add_argument("--step", type=count, metavar="S", help="the checkpoints' step (default: the newest of each)")
    parser.add_argument("--prefix", type=count, default=32, metavar="N", help="tokens that are given (default: 32)")
    text = "tokens that must follow exactly (default: 16)"
    parser.add_argument("--continuation", type=count, default=16, metavar="N", help=text)
    text = "sequences of each kind, trained on and never seen, at most (default: 200)"
    parser.add_argument("--items", type=count, default=200, metavar="N", help=text)
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of the choice of sequences (default: 0)")
    text = (
        "JSONL with texts to ask about instead; runs of one size that differ in them are compared with and without each"
    )
    parser.add_argument("--texts", metavar="FILE", help=text)
    add_out(parser)
    add_schema(parser, "analysis.memorisation.result:MemorisationResult")


def add_ladder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a YAML file; see configs/ladders/")
    parser.add_argument("--slurm", action="store_true", help="submit the runs as jobs instead of running them here")
    parser.add_argument(
        "--status", action="store_true", help="start nothing: state, step, loss and forecast of each run"
    )
    parser.add_argument(
        "--jobs", type=count, metavar="N", help="here: at most N runs at a time (default: what there is room for)"
    )


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--step", type=int, metavar="S", help="the checkpoint's step (default: the newest)")
    text = "tasks of the run, known ones, or NAME=ITEMS.jsonl (default: the run's)"
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help=text)
    text = "a directory of lm-eval's task files, for tasks of your own named lm-eval/NAME"
    parser.add_argument("--include-path", metavar="DIR", help=text)
    text = "remove what other checkpoints are known to have of these tasks on other items (else such tasks are refused)"
    parser.add_argument("--replace", action="store_true", help=text)
    parser.add_argument("--split", action="append", metavar="NAME", help="only this validation split (may be repeated)")


def add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--step", type=int, metavar="S", help="of the checkpoint (default: the newest complete one)")
    parser.add_argument("--format", choices=["hf"], default="hf", help="hf: a directory that transformers loads")
    dtypes = ("float32", "bfloat16", "float16", "fp32", "bf16", "fp16")
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="of the weights (default: float32)")
    parser.add_argument("--shard-bytes", type=count, metavar="N", help="of a file at most (default: 5e9)")
    text = "also upload it to the Hugging Face hub, as a private model"
    parser.add_argument("--push", metavar="NAME", help=text)
    parser.add_argument("out", metavar="DIR", help="a new or empty directory")


def steps(text: str) -> list[int]:
    """N,N,..."""
    return [count(part) for part in text.split(",")]


steps.__name__ = "steps N,N,..."


def add_import(parser: argparse.ArgumentParser) -> None:
    text = "directories of save_pretrained, or names on the hub; NAME@REVISION; a directory of checkpoint directories"
    parser.add_argument("models", nargs="+", metavar="DIR_OR_NAME", help=text)
    parser.add_argument("--out", required=True, metavar="RUN", help="the run directory that is written, or added to")
    text = "their steps (default: as in step1000 or checkpoint-1000, of revisions and directories)"
    parser.add_argument("--steps", type=steps, metavar="N,N,...", help=text)
    parser.add_argument("--tokens-per-step", type=count, metavar="N", help="tokens that a step was trained on")
    text = "a configuration whose data are taken, or text files (default: the embedded sample)"
    parser.add_argument("--data", nargs="+", metavar="CONFIG_OR_TEXT", help=text)
    text = "tokens of a validation sequence (default: 1024, or what the model takes)"
    parser.add_argument("--sequence", type=count, metavar="N", help=text)
    parser.add_argument("--tokenizer", metavar="DIR_OR_NAME", help="where the model's directory has none")
    text = "the token before every sequence, or none (default: as the tokenizer has it)"
    parser.add_argument("--begin-token", metavar="TOKEN", help=text)
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="tasks to score, as evaluate has them")


def add_outlook(parser: argparse.ArgumentParser) -> None:
    """The runs, how much of them is observed, what lies ahead of them, and how logs of others are read."""
    text = "run directories, Parquet or CSV tables, logs of other frameworks"
    parser.add_argument("tables", nargs="+", metavar="TABLE_OR_RUN", help=text)
    parser.add_argument(
        "--fit-fraction", type=float, metavar="F", help="observe only this share of each run, score on the rest"
    )
    parser.add_argument("--split", action="append", metavar="NAME", help="only this split (may be repeated)")
    add_ahead(parser)
    parser.add_argument("--params", type=count, metavar="N", help="of a log: non-embedding parameters")
    add_log_options(parser)


def add_ahead(parser: argparse.ArgumentParser, of: str = "") -> None:
    """What lies ahead of a run."""
    parser.add_argument("--to-tokens", type=count, metavar="N", help=f"{of}forecast to so many trained tokens")
    text = f"{of}the whole run's learning rate: KIND,lr=..,warmup=TOKENS,final=RATIO[,decay=TOKENS]"
    parser.add_argument("--schedule", metavar="SCHEDULE", help=text)


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """What a log of another framework leaves out, its size aside."""
    text = (
        "of a log: auto, table (ours), tensorboard, mlflow, hf, wandb, jsonl, megatron, nanogpt, text, lightning or csv "
        "(default: auto)"
    )
    parser.add_argument("--format", default="auto", metavar="FORMAT", help=text)
    parser.add_argument("--run", metavar="NAME", help="of a log: the run's name, or which of its runs to take")
    parser.add_argument("--tokens-per-step", type=count, metavar="N", help="of a log: tokens an optimizer step")
    text = "of a log: what it calls run, params, step, tokens, lr or loss, as loss=eval/loss (may be repeated)"
    parser.add_argument("--column", action="append", metavar="OURS=NAME", help=text)
    text = (
        "of a log: what its loss is in: nats, bits or perplexity of a token (default: by the column's name, else nats)"
    )
    parser.add_argument("--loss-unit", choices=("nats", "bits", "perplexity"), metavar="UNIT", help=text)


def log_options(arguments: argparse.Namespace) -> Any:
    """LogOptions of the arguments of add_log_options."""
    from emergence_train.analysis.logs import options_of

    given = arguments.format, arguments.run, arguments.params, arguments.tokens_per_step, arguments.column or []
    return options_of(*given, arguments.loss_unit)


def add_report(parser: argparse.ArgumentParser) -> None:
    text = "run directories, Parquet or CSV tables, logs of other frameworks, results of tasks"
    parser.add_argument("runs", nargs="+", metavar="RUN_OR_TABLE", help=text)
    text = "where report.html goes (default: report/ in the first run; of a table, here)"
    parser.add_argument("--out", metavar="DIR", help=text)
    text = f"serve the page to this machine, up to date, instead of writing it (default port: {SERVE_PORT}; 0: any free one)"
    parser.add_argument("--serve", nargs="?", type=port, const=SERVE_PORT, metavar="PORT", help=text)
    add_ahead(parser, "of logs and tables: ")
    add_sizes(parser)
    add_loss(parser)
    add_log_options(parser)


def reading(arguments: argparse.Namespace) -> Any:
    """The Reading of add_report's arguments."""
    from emergence_train.report.reading import reading_of

    return reading_of(
        arguments.format,
        arguments.run,
        arguments.params or [],
        arguments.tokens_per_step,
        arguments.column or [],
        arguments.loss_unit,
        arguments.loss,
        arguments.to_tokens,
        arguments.schedule,
    )


def port(text: str) -> int:
    """A port of TCP; 0: any."""
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; give a number from 0 to 65535")
    return int(text)


def add_runs(parser: argparse.ArgumentParser) -> None:
    text = "holds run directories (default: runs)"
    parser.add_argument("directory", nargs="?", default="runs", metavar="DIR", help=text)


def add_watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or directories of them")
    parser.add_argument("--once", action="store_true", help="show it once and exit; --json does too")
    text = "between two looks (default: 2; without a terminal a line every 30)"
    parser.add_argument("--seconds", type=float, metavar="S", help=text)
    text = "for a stopped run to be resumed (default: for ever on a terminal, 0 without one)"
    parser.add_argument("--wait", type=float, metavar="MINUTES", help=text)


def add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory")
    text = "its beginning (may be repeated)"
    parser.add_argument("--prompt", action="append", required=True, metavar="TEXT", help=text)
    parser.add_argument("--step", type=int, metavar="S", help="the checkpoint's step (default: the newest)")
    parser.add_argument("--tokens", type=count, default=64, metavar="N", help="tokens to add, at most (default: 64)")
    text = "of the draws; 0: the likeliest token each time (default: 0.8)"
    parser.add_argument("--temperature", type=float, default=0.8, metavar="T", help=text)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")


def add_scores(parser: argparse.ArgumentParser) -> None:
    """The results, and how those of other programs are read."""
    text = "run directories, Parquet or CSV tables, results of lm-eval, lighteval, OLMES or HELM"
    parser.add_argument("tables", nargs="+", metavar="TABLE_OR_RUN", help=text)
    text = "of results: auto, evaluations (ours), lm-eval, lighteval, olmes, helm or csv (default: auto)"
    parser.add_argument("--format", default="auto", metavar="FORMAT", help=text)
    parser.add_argument("--run", metavar="NAME", help="of results: the run's name")
    add_sizes(parser)
    parser.add_argument("--tokens-per-step", type=count, metavar="N", help="of results: tokens an optimizer step")
    text = "of results: what they call run, params, step, tokens, loss, task, metric, value, ... (may be repeated)"
    parser.add_argument("--column", action="append", metavar="OURS=NAME", help=text)
    add_loss(parser)


def add_sizes(parser: argparse.ArgumentParser) -> None:
    text = "of logs and results: non-embedding parameters, of every run or of one (may be repeated)"
    parser.add_argument("--params", action="append", metavar="[RUN=]N", help=text)


def add_loss(parser: argparse.ArgumentParser) -> None:
    text = "of results: the loss by steps, a log or a run directory; or a metric among the results"
    parser.add_argument("--loss", metavar="FILE_OR_TASK/METRIC", help=text)
