"""A configuration as text to read: every key with its value, default and description, as YAML that can be loaded again."""

import json
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic_core import PydanticUndefined

from emergence_train.section import Section

COMMENT = 34  # column in which the descriptions begin; less on a narrow terminal
USUAL = 80  # columns where there is no terminal
NARROWEST = 60


@dataclass(frozen=True)
class Entry:
    """A key that holds no section itself."""

    key: str  # dotted, an index where the node is a list
    value: Any  # as JSON has it
    default: Any  # None where the key is required
    required: bool
    description: str

    @property
    def changed(self) -> bool:
        """Whether the value is another than the default; a required key has none."""
        return not self.required and self.value != self.default


def entries(section: Section, prefix: str = "") -> Iterator[Entry]:
    """The keys of a section and of those in it, in the order of the schema."""
    plain = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), f"{prefix}{name}"
        if isinstance(value, Section):
            yield from entries(value, f"{key}.")
            continue
        if isinstance(value, list) and value and isinstance(value[0], Section):
            for number, item in enumerate(value):
                yield from entries(item, f"{key}.{number}.")
            continue
        default = field.get_default(call_default_factory=True)
        required = default is PydanticUndefined
        default = None if required else list(default) if isinstance(default, tuple) else default
        yield Entry(key, plain[name], default, required, field.description or "")


def as_json(section: Section) -> dict:
    """{"keys": [{key, value, default, changed, required, description}]}."""
    names = ("key", "value", "default", "changed", "required", "description")
    return {"keys": [{name: getattr(entry, name) for name in names} for entry in entries(section)]}


def as_yaml(section: Section, width: int | None = None) -> str:
    """The tree as YAML with the descriptions as comments; `*` marks what is not its default, which the comment then names."""
    width = max(width or shutil.get_terminal_size((USUAL, 24)).columns, NARROWEST)
    lines: list[str] = []
    before: list[str] = []
    described: set[str] = set()  # without indices: the items of a list have the same keys
    for entry in entries(section):
        *above, name = entry.key.split(".")
        same = next((k for k, (a, b) in enumerate(zip(above, before)) if a != b), min(len(above), len(before)))
        lines += _heads(above, same)
        kind = ".".join("" if part.isdigit() else part for part in entry.key.split("."))
        description = "" if kind in described else entry.description
        lines += _entry(_indent(above), _dashed(above, before, name), entry, description, width)
        described.add(kind)
        before = above
    return "\n".join(lines)


def _heads(above: list[str], same: int) -> list[str]:
    """A line for each section that begins here; an item of a list begins with the dash of its first key."""
    return [f"{_indent(above[:k])}{above[k]}:" for k in range(same, len(above)) if not above[k].isdigit()]


def _indent(above: list[str]) -> str:
    return "  " * len(above)


def _dashed(above: list[str], before: list[str], name: str) -> str:
    """The key, with the dash of its item where it is the first there."""
    begins = bool(above) and above[-1].isdigit() and above != before[: len(above)]
    return f"- {name}" if begins else name


def _entry(indent: str, name: str, entry: Entry, description: str, width: int) -> list[str]:
    """`name: value  # description`, the description continued below in its own column."""
    indent = indent[2:] if name.startswith("- ") else indent
    text, column = f"{indent}{name}: {_value(entry.value)}", min(COMMENT, width - 30)
    marks = [f"* default {_value(entry.default)}"] if entry.changed else []
    note = "; ".join([*marks, *filter(None, [description])])
    comment = textwrap.wrap(note, width - column - 2, break_long_words=False, break_on_hyphens=False)
    if len(text) >= column - 1:
        return [*_lines(text, entry.value, width), *(f"{'':{column}}# {line}" for line in comment)]
    first, *rest = comment or [""]
    return [f"{text:{column}}# {first}".rstrip(" #"), *(f"{'':{column}}# {line}" for line in rest)]


def _lines(text: str, value: Any, width: int) -> list[str]:
    """`name: value`, a list too long for one line broken behind its commas: YAML reads it the same."""
    if len(text) <= width or not isinstance(value, list):
        return [text]
    start = text.index("[") + 1
    lines = [text[:start]]
    for number, item in enumerate(map(json.dumps, value), 1):
        part = item + ("," if number < len(value) else "]")
        if len(lines[-1]) + 1 + len(part) > width and lines[-1].strip():
            lines.append(" " * (len(text) - len(text.lstrip()) + 4))
        lines[-1] += part if lines[-1].endswith(("[", " ")) else f" {part}"
    return lines


def _value(value: Any) -> str:
    """A value in one line of YAML."""
    if isinstance(value, (list, dict)):
        return json.dumps(value)
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("\n...\n").strip()
    )
