"""What is wrong with a configuration, in one line: the first of pydantic's complaints, its place and what to write instead."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError

from emergence_train.errors import InputError
from emergence_train.section import NAME, ByKind, Section

AnySection = TypeVar("AnySection", bound=Section)
# What to write instead, by pydantic's name of the problem
WRONG_TYPES = {
    "string_type": "; YAML takes it for something else: quote it, as \"{0}='TEXT'\" on the command line",
    "list_type": '; write all of it, as "{0}=[...]"',
    "dict_type": "; it is a section: set its keys, as {0}.KEY=VALUE",
    "model_type": "; it is a section: set its keys, as {0}.KEY=VALUE",
}


def validated(root: type[AnySection], tree: dict, path: str | Path, examples: str = "") -> AnySection:
    """The tree of a file as its root section; `examples` is the folder that has right ones, of a kind of file without overrides.

    Raises:
        InputError: a wrong key or value, by its place.
    """
    try:
        return root.model_validate(tree)
    except ValidationError as error:
        problem = first_problem(error, tree, root, overrides=not examples)
        more = f"; see {examples} for examples" if examples and not problem.endswith("?") else ""
        raise InputError(f"{path}: {problem}{more}") from None


def first_problem(error: ValidationError, tree: dict, root: type[Section], overrides: bool) -> str:
    """The first pydantic complaint as one line: where, what, and the right key if one was misspelt, or the override."""
    # A misspelt key usually also makes the right one missing: report the former.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        section = _section(problem["loc"][:-1], tree, root)
        known = list(section.model_fields) if section else []
        if overrides and problem["loc"][:-1] == ("model",):
            known.append("preset")
        return f"{where}: unknown key{suggest(str(problem['loc'][-1]), known)}"
    if problem["type"] == "missing":
        return f"{where}: is missing"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    if problem.get("ctx", {}).get("pattern") == NAME:
        message = "is no name: give letters of English, digits, '.', '_' and '-', a letter or a digit first"
    message += WRONG_TYPES.get(problem["type"], "").format(where) if overrides else ""
    shown = f" (got {given!r})" if isinstance(given, (str, int, float, bool, type(None))) else ""
    return f"{where}: {message}{shown}" if where else f"{message}{shown}"


def _section(location: tuple, tree: Any, root: type[Section]) -> type[Section] | None:
    """The class of the section at a place, as pydantic spells it: keys, names, indices and, after a union, its `kind`."""
    declared: Any = root
    for key in location:
        if isinstance(declared, tuple):
            declared = next((kind for kind in declared if key in get_args(kind.model_fields["kind"].annotation)), None)
            continue
        # YAML reads a name such as 0.05 as a number, and one as `on` as what pydantic calls 1; only its `kind` is asked for
        tree = {str(name): value for name, value in tree.items()}.get(str(key)) if isinstance(tree, dict) else tree[key]
        if get_origin(declared) in (dict, list):
            declared = _declared(get_args(declared)[-1], (), tree)
        elif isinstance(declared, type) and issubclass(declared, Section):
            field = declared.model_fields[key]
            declared = _declared(field.annotation, field.metadata, tree)
    return declared if isinstance(declared, type) and issubclass(declared, Section) else None


def _declared(annotation: Any, metadata: Sequence, tree: Any) -> Any:
    """What a value is declared as, without what says more of it: a class, a list or mapping of them, or a union's sections."""
    for entry in metadata:
        if isinstance(kinds := getattr(entry, "func", None), ByKind):
            return kinds.section_of(tree)
    if get_origin(annotation) is Annotated:
        return _declared(get_args(annotation)[0], (), tree)
    if get_origin(annotation) not in (Union, UnionType):
        return annotation
    members = tuple(member for member in get_args(annotation) if member is not type(None))
    return members[0] if len(members) == 1 else members


def suggest(word: str, known: Any) -> str:
    known = list(known)
    if not known:
        return ""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
