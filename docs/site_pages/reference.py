"""The reference of configuration, command line, tables and results, read from the code."""

import argparse
import ast
import importlib
import importlib.util
import inspect
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from docs.site_pages.markdown import code, table

RESULTS = {
    "analyze temporal": "emergence_train.analysis.temporal.result",
    "analyze emergence": "emergence_train.analysis.emergence.result",
    "analyze weights": "emergence_train.analysis.position_weights.result",
    "memorise": "emergence_train.analysis.memorisation.result",
    "grok": "emergence_train.analysis.grokking.result",
}
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


# ---------------------------------------------------------------------------------------------------- configuration


def configuration() -> str:
    """Every key of a configuration file, with type, default and description."""
    from emergence_train.config import Config
    from emergence_train.models.presets import PRESETS
    from emergence_train.optim.registry import OPTIMIZERS

    lines = [
        "# Configuration",
        "",
        "A configuration is one YAML file. `emergence-train train FILE a.b=value` changes a key for one run; entries of a",
        "list are named by their index (`data.sources.0.weight=5`). A wrong key, type or size is one line that names the",
        "place. `configs/` has a file for each thing to run. This page is made from `emergence_train/config.py`.",
        "",
    ]
    described: dict[type, str] = {}
    for path, section in sections(Config):
        if section in described:
            lines += [f"## {path}", "", f"As [{described[section]}](#{_anchor(described[section])}).", ""]
            continue
        described[section] = path
        lines += [
            f"## {path or 'Top level'}",
            "",
            inspect.getdoc(section) if section.__doc__ else "",
            "",
            _keys(section),
        ]
        if path == "training.optimizer":
            for kind, other in OPTIMIZERS.items():
                if other is not section:
                    lines += [f"With `kind: {kind}`:", "", inspect.getdoc(other) or "", "", _keys(other)]
        if path == "model":
            lines += ["`preset: NAME` stands for these sizes, which other keys under `model` then change:", ""]
            sizes = ("layers", "width", "heads", "kv_heads", "ffn", "max_sequence", "tied")
            rows = [[code(name), *(preset.get(size, "") for size in sizes)] for name, preset in PRESETS.items()]
            lines.append(table(["preset", *sizes], rows))
    return "\n".join(lines)


def _anchor(path: str) -> str:
    """The anchor of a heading in the site's table of contents."""
    return re.sub(r"[^\w-]", "", path.lower())


def sections(section: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """The sections of a configuration, each with its dotted path; `[]` stands for an index."""
    yield path, section
    for name, field in section.model_fields.items():
        inner, many = _inner(field.annotation)
        if inner is not None:
            yield from sections(inner, ".".join(filter(None, (path, name))) + ("[]" if many else ""))


def _inner(annotation) -> tuple[type[BaseModel] | None, bool]:
    """The section that an annotation holds, and whether it is a list of them."""
    many = typing.get_origin(annotation) is list
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate, many
    return None, False


def _keys(section: type[BaseModel]) -> str:
    rows = []
    for name, field in section.model_fields.items():
        inner, many = _inner(field.annotation)
        kind = ("list of sections" if many else "section") if inner else code(_type(field.annotation))
        bounds = [
            f"{sign} {_bound(getattr(part, key))}"
            for part in field.metadata
            for key, sign in BOUNDS.items()
            if hasattr(part, key)
        ]
        bounds += [f"at least {part.min_length}" for part in field.metadata if hasattr(part, "min_length")]
        default = "required" if field.is_required() else "" if inner and not many else code(_value(field.get_default()))
        rows.append([code(name), kind + (f", {', '.join(bounds)}" if bounds else ""), default, field.description or ""])
    return table(["key", "type", "default", "what"], rows)


def _bound(value) -> str:
    large = isinstance(value, int) and value >= 2**31 and value.bit_count() == 1
    return f"2^{value.bit_length() - 1}" if large else str(value)


def _type(annotation) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " | ".join(map(str, inner))
    if origin is typing.Annotated:
        return _type(inner[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_type, inner))
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(_type, inner))}]"
    return "None" if annotation is type(None) else "..." if annotation is Ellipsis else annotation.__name__


def _value(value) -> str:
    if value is PydanticUndefined:
        return ""
    return "none" if value is None else str(list(value) if isinstance(value, tuple) else value)


# ----------------------------------------------------------------------------------------------------- command line


def command_line() -> str:
    """Every command with its arguments, from the argparse parsers."""
    from emergence_kernels.bench.run import parser as bench

    lines = [
        "# Command line",
        "",
        "`python -m emergence_train` is the same command. Every error is one line that says what, where and what to do;",
        "`--debug` shows the traceback, `--json` prints the result for machines. Exit codes:",
        "",
        exit_codes(),
    ]
    for name, parser in [*commands(), ("emergence-train bench", bench())]:
        usage = " ".join(parser.format_usage().removeprefix("usage: ").replace(parser.prog, name).split())
        lines += [f"## {name}", "", (parser.description or "").rstrip("."), "", "```text", usage, "```", ""]
        shown = [action for action in parser._actions if action.help != argparse.SUPPRESS and action.dest != "help"]
        lines.append(table(["argument", "what"], [[code(_argument(action)), _help(action)] for action in shown]))
    return "\n".join(lines)


def commands() -> list[tuple[str, argparse.ArgumentParser]]:
    """The command line's own parsers that take arguments, by their full name."""
    return [leaf for leaf in _leaves("emergence-train", parser()) if leaf[0] != "emergence-train bench"]


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `bench` has one of its own."""
    from emergence_train.cli import _parser

    return _parser()


def _leaves(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield name, parser
    for action in inner:
        help_of = {choice.dest: choice.help for choice in action._choices_actions}
        for verb, child in action.choices.items():
            child.description = child.description or help_of.get(verb)
            yield from _leaves(f"{name} {verb}", child)


def _argument(action: argparse.Action) -> str:
    choices = "{" + ", ".join(action.choices) + "}" if action.choices else ""
    metavar = (action.metavar or choices or action.dest.upper()) + ("..." if action.nargs in ("+", "*") else "")
    if not action.option_strings:
        return metavar
    return ", ".join(action.option_strings) + (f" {metavar}" if action.nargs != 0 else "")


def _help(action: argparse.Action) -> str:
    default = action.default
    shown = default not in (None, False, argparse.SUPPRESS, "", []) and "default" not in (action.help or "")
    return (action.help or "") + (f" (default: {default})" if shown and action.option_strings else "")


def exit_codes() -> str:
    """The codes of errors.py, and what a scheduler should do."""
    from emergence_train.errors import InputError, PeerLost, RunError, Stopped

    return table(
        ["code", "meaning", "a requeue should"],
        [
            [0, "done", "stop"],
            [
                RunError.code,
                "failed while running: a full disk, a loss that is not a number, replicas that differ",
                "not; look first",
            ],
            [InputError.code, "wrong use or wrong input", "not"],
            [Stopped.code, "stop requested (SIGTERM, SIGUSR1, SIGHUP), everything saved", "run the same command again"],
            [
                PeerLost.code,
                "another process was lost, or hangs",
                "run the same command again, perhaps without that machine",
            ],
        ],
    )


# ------------------------------------------------------------------------------------------------------------ tables


def tables() -> str:
    """The columns of the three tables with types and units."""
    from emergence_train.recorder.columns import DESCRIPTIONS
    from emergence_train.recorder.tables import TABLES

    lines = [
        "# Tables",
        "",
        "The tables that a run writes and the analyses read: Parquet, or CSV with the same columns, of any origin.",
        "Sums are stored, not means: they add over ranks and files. A missing column, a NaN, a duplicate key",
        "and runs of different vocabularies (but of evaluations, which are parted by them) are one error that names file,",
        "row and column. The vocabulary is a column `vocabulary` or metadata of the Parquet file.",
        "",
    ]
    for name, spec in TABLES.items():
        rows = []
        for column, kind in (spec.columns | dict(spec.extra)).items():
            notes = ["key"] if column in spec.key else []
            notes += ["may be missing"] if column in spec.optional or column in dict(spec.extra) else []
            notes += ["may be empty"] if column in spec.sparse else []
            notes += ["≥ 0"] if column in spec.non_negative else []
            rows.append([code(column), str(kind), DESCRIPTIONS[column], ", ".join(notes)])
        lines += [f"## {name}", "", table(["column", "type", "what", ""], rows)]
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------- results


def results() -> str:
    """The keys of each analysis' result.json, from its frozen dataclasses."""
    lines = [
        "# Results",
        "",
        "`emergence-train analyze ... --out DIR` writes `DIR/result.json`, tables as CSV and figures. In Python the same is a",
        "tree of frozen dataclasses: a key here is a field there. More keys may be added; those that stand here stay.",
        "",
    ]
    for name, module in RESULTS.items():
        if importlib.util.find_spec(module) is not None:
            loaded = importlib.import_module(module)
            lines += [f"## {name}", "", loaded.__doc__ or "", ""]
            for result in classes(loaded):
                lines += [f"### {result.__name__}", "", own_doc(result), "", field_table(result)]
    return "\n".join(lines)


def classes(module: types.ModuleType) -> list[type]:
    """The dataclasses of a result, the outermost first, each before what it holds."""
    own = [value for value in vars(module).values() if isinstance(value, type) and is_dataclass(value)]
    held = {inner for cls in own for inner in _held(cls)}
    order: list[type] = []
    waiting = [cls for cls in own if cls not in held and cls.__name__.endswith("Result")]
    while waiting:
        cls = waiting.pop(0)
        if cls not in order:
            order.append(cls)
            waiting += _held(cls)
    return order


def _held(cls: type) -> list[type]:
    """Dataclasses in the fields of a dataclass."""
    hints = typing.get_type_hints(cls)
    return [
        leaf for hint in hints.values() for leaf in _leaves_of(hint) if isinstance(leaf, type) and is_dataclass(leaf)
    ]


def _leaves_of(hint) -> list:
    return [leaf for inner in typing.get_args(hint) for leaf in _leaves_of(inner)] or [hint]


def own_doc(cls: type) -> str:
    """Its docstring; for a dataclass without one Python generates a signature, which is ignored."""
    doc = inspect.getdoc(cls) or ""
    return "" if doc.startswith(f"{cls.__name__}(") else doc


def field_table(cls: type) -> str:
    """The fields of a dataclass, or of a named tuple, as a table.

    The meaning of a field is in its annotation, Annotated[type, Unit(...), "meaning"], or in the comment on its line.
    """
    comments, hints = field_comments(cls), typing.get_type_hints(cls, include_extras=True)
    parts = {part.name: part for part in fields(cls)} if is_dataclass(cls) else {}
    rows = []
    for name, hint in hints.items():
        part, (unit, meaning) = parts.get(name), _extras(hint)
        what = meaning or comments.get(name, "")
        metadata = part.metadata if part else {}
        what += " (key left out where there is none)" if metadata.get("absent") else ""
        what += " (its keys stand among these)" if metadata.get("inline") else ""
        what += f" `{part.default}`" if part and part.default and isinstance(part.default, str) else ""
        rows.append([code(metadata.get("key", name)), code(_type(hint)), unit, what.strip()])
    if any(row[2] for row in rows):
        return table(["key", "type", "unit", "what"], rows)
    return table(["key", "type", "what"], [[key, kind, what] for key, kind, _, what in rows])


def _extras(hint) -> tuple[str, str]:
    """(unit, meaning) of an annotation and of the annotations inside it."""
    unit = meaning = ""
    if typing.get_origin(hint) is typing.Annotated:
        for extra in hint.__metadata__:
            if type(extra).__name__ == "Unit":
                unit = unit or str(extra)
            elif isinstance(extra, str):
                meaning = meaning or extra
    for inner in typing.get_args(hint):
        extras = _extras(inner)
        unit, meaning = unit or extras[0], meaning or extras[1]
    return unit, meaning


def field_comments(cls: type) -> dict[str, str]:
    """The comment at the end of each field's line, by the field's name, of a class and of dataclasses it extends."""
    comments: dict[str, str] = {}
    for parent in [base for base in reversed(cls.__mro__) if is_dataclass(base) or base is cls]:
        source = inspect.cleandoc("\n" + inspect.getsource(parent))
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                _, mark, comment = lines[node.end_lineno - 1][node.end_col_offset :].partition("#")
                if mark:
                    comments[node.target.id] = comment.strip()
    return comments
