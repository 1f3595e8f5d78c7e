"""What is wrong with a configuration, in one line: the first of pydantic's complaints, its place and what to write instead."""

import difflib
from typing import Any

from pydantic import ValidationError

from emergence_train.section import ByKind, Section

# What to write instead, by pydantic's name of the problem
WRONG_TYPES = {
    "string_type": "; YAML takes it for something else: quote it, as \"{0}='TEXT'\" on the command line",
    "list_type": '; write all of it, as "{0}=[...]"',
    "dict_type": "; it is a section: set its keys, as {0}.KEY=VALUE",
    "model_type": "; it is a section: set its keys, as {0}.KEY=VALUE",
}


def first_problem(error: ValidationError, tree: dict, root: type[Section]) -> str:
    """The first pydantic complaint as one line: where, what, and the right key if one was misspelt."""
    # A misspelt key usually also makes the right one missing: report the former.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    where = ".".join(str(part) for part in problem["loc"]) or "configuration"
    if problem["type"] == "extra_forbidden":
        section = _section(problem["loc"][:-1], tree, root)
        known = list(section.model_fields) if section else []
        if problem["loc"][0] == "model":
            known.append("preset")
        return f"{where}: unknown key{suggest(str(problem['loc'][-1]), known)}"
    if problem["type"] == "missing":
        return f"{where}: is missing"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    message += WRONG_TYPES.get(problem["type"], "").format(where)
    shown = f" (got {given!r})" if isinstance(given, (str, int, float, bool, type(None))) else ""
    return f"{where}: {message}{shown}"


def _section(location: tuple, tree: Any, root: type[Section]) -> type[Section] | None:
    """The class of the section at a path of keys and indices of the tree that was read."""
    section: Any = root
    for key in location:
        tree = tree[key]
        if isinstance(key, int):
            continue
        field = section.model_fields[key]
        by_kind = [entry.func for entry in field.metadata if isinstance(getattr(entry, "func", None), ByKind)]
        if by_kind:
            section = by_kind[0].section_of(tree)
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        section = next((c for c in candidates if isinstance(c, type) and issubclass(c, Section)), None)
        if section is None:
            return None
    return section


def suggest(word: str, known: Any) -> str:
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
