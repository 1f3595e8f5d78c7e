"""Results as frozen dataclasses: conversion to JSON, and its schema.

The dataclass is the only description of a result. A field's annotation has its unit and its meaning,

    loss: Annotated[Nats, "forecast"]

from which `schema` makes the JSON schema; `as_json` converts a value to that form. Field metadata marks where the JSON
differs from the dataclass: ABSENT, INLINE, or `keyed`.
"""

import math
import types
import typing
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal

import numpy as np

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ABSENT = {"absent": True}  # a field that is None has no key, where others are null
INLINE = {"inline": True, **ABSENT}  # the keys of a field's value are keys of its owner


class Unit(str):
    """The unit of a number, in a field's annotation."""


Nats = Annotated[float, Unit("nats per token")]
Tokens = Annotated[int, Unit("tokens")]
Probability = Annotated[float, Unit("probability")]
Share = Annotated[float, Unit("share")]


def absent() -> Any:
    """A field that has no key while it is None."""
    return field(default=None, metadata=ABSENT)


def inline() -> Any:
    """A field whose value's keys are keys of its owner; none of them while it is None."""
    return field(default=None, metadata=INLINE)


def keyed(name: str) -> Any:
    """A field with a JSON key that Python does not allow as a name."""
    return field(metadata={"key": name})


@dataclass(frozen=True)
class Interval:
    """A median with its 95% interval; null where an end is open or unknown."""

    value: float | None
    low95: float | None
    high95: float | None


def as_json(value: Any) -> Any:
    """Convert recursively: dataclasses to dictionaries, tuples to lists, numbers that are not finite to None."""
    if is_dataclass(value):
        plain: dict[str, Any] = {}
        for part in fields(value):
            inner = getattr(value, part.name)
            if inner is None and part.metadata.get("absent"):
                continue
            plain |= as_json(inner) if part.metadata.get("inline") else {_key(part): as_json(inner)}
        return plain
    if isinstance(value, dict):
        return {key: as_json(inner) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [as_json(inner) for inner in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def schema(result: type) -> dict:
    """JSON schema (draft 2020-12) of what `as_json` gives for a dataclass: types, units, meanings, required keys.

    Every class becomes an entry of $defs with its docstring as the description. Raises TypeError for an annotation
    that has no JSON form.
    """
    definitions: dict[str, dict] = {}
    top = _described(result, definitions)
    return {"$schema": DIALECT, "title": result.__name__, **top, "$defs": definitions}


def _key(part: Any) -> str:
    return part.metadata.get("key", part.name)


def _object(owner: type, definitions: dict[str, dict]) -> dict:
    """The schema of one dataclass' object."""
    hints = typing.get_type_hints(owner, include_extras=True)
    properties: dict[str, dict] = {}
    required: list[str] = []
    for part in fields(owner):
        if part.metadata.get("inline"):
            (inner,) = (kind for kind in _alternatives(hints[part.name]) if kind is not types.NoneType)
            merged = _object(inner, definitions)
            properties |= merged["properties"]
            optional = types.NoneType in _alternatives(hints[part.name])
            required += [] if optional else merged["required"]
            continue
        kind = hints[part.name]
        if part.metadata.get("absent"):
            kind = _without_none(kind)
        else:
            required.append(_key(part))
        properties[_key(part)] = _described(kind, definitions)
    rule: dict[str, Any] = {"type": "object"}
    if owner.__doc__:
        rule["description"] = " ".join(owner.__doc__.split())
    return rule | {"properties": properties, "required": required, "additionalProperties": False}


def _alternatives(kind: Any) -> tuple:
    """The members of a union, or the annotation alone."""
    return typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) is Annotated:
        inner, *extras = typing.get_args(kind)
        return Annotated[(_without_none(inner), *extras)]
    return typing.Union[tuple(part for part in _alternatives(kind) if part is not types.NoneType)]  # noqa: UP007


_SCALARS = {str: "string", bool: "boolean", int: "integer", float: "number", types.NoneType: "null"}


def _described(kind: Any, definitions: dict[str, dict]) -> dict:
    """The schema of one annotation."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        rule = _described(arguments[0], definitions)
        for extra in arguments[1:]:
            rule |= {"unit" if isinstance(extra, Unit) else "description": str(extra)}
        return rule
    if kind in _SCALARS:
        return {"type": _SCALARS[kind]}
    if isinstance(kind, type) and is_dataclass(kind):
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = {}  # keeps the owner before its parts in the order of definitions
            definitions[kind.__name__] |= _object(kind, definitions)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple and arguments[1:] == (Ellipsis,):
        return {"type": "array", "items": _described(arguments[0], definitions)}
    if origin is dict and arguments[0] is str:
        return {"type": "object", "additionalProperties": _described(arguments[1], definitions)}
    if len(_alternatives(kind)) > 1:
        return {"anyOf": [_described(part, definitions) for part in arguments]}
    raise TypeError(f"{kind}: has no JSON form")
