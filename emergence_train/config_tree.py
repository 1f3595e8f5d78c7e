"""A configuration file and its overrides as a tree of dictionaries and lists, before it is checked against the schema."""

import re
from pathlib import Path
from typing import Any

import yaml

from emergence_train.errors import InputError
from emergence_train.input_files import read_text


class Loader(yaml.SafeLoader):
    """YAML in which 5e3 is a number, and a duplicate key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is a list or a mapping", key.start_mark)
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is listed twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)


class OverrideLoader(Loader):
    """Overrides are also made by programs that write Python's values, as sweeps do: None is null, in lists and mappings too."""


OverrideLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("None$"), ["N"])


def read(path: Path) -> dict:
    """The tree in a YAML file."""
    try:
        tree = yaml.load(read_text(path, encoding="utf-8-sig"), Loader)
    except FileNotFoundError:
        raise InputError(f"{path}: no such configuration file; see configs/ for examples") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a directory; give a configuration file, as the config.yaml in a run") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path}: a configuration is a mapping of keys to values; see configs/ for examples")
    return tree


def apply(tree: dict, override: str) -> None:
    """Set one `a.b.c=value`."""
    dotted, sign, text = override.partition("=")
    keys = dotted.split(".")
    if not sign or not all(keys):
        raise InputError(f"override {override!r}: write it as section.key=value, for example training.zero_stage=2")
    try:
        value = yaml.load(text, OverrideLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        shown = override if len(override) <= 200 else f"{override[:200]}..."
        raise InputError(f"override {shown!r}: the value is not valid YAML: {' '.join(str(error).split())}") from None
    if value == text.strip():  # a quoted number is text
        value = _number(value)
    node: Any = tree
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        place: str | int = key  # an index where the node is a list
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise InputError(
                    f"override {override!r}: {'.'.join(keys[:depth])} is a list of {len(node)}; "
                    f"use an index from 0 to {len(node) - 1}"
                )
            place = int(key)
        elif not isinstance(node, dict):
            raise InputError(f"override {override!r}: {'.'.join(keys[:depth])} is a value, not a section; set that")
        if last:
            node[place] = value
        else:
            node = node.setdefault(place, {}) if isinstance(node, dict) else node[place]
            if node is None:
                raise InputError(
                    f"override {override!r}: {'.'.join(keys[: depth + 1])} is empty in the file; give it there"
                )


def _number(text: str) -> Any:
    """Convert strings such as 3e-4, which YAML 1.1 does not read as numbers."""
    try:
        return float(text) if any(character.isdigit() for character in text) else text
    except ValueError:
        return text


# Keys that only another kind of file has at its top, and what takes such a file
OTHER_FILES = {
    frozenset(
        {"config", "sizes"}
    ): "is a ladder; give it to `emergence-train ladder`, or `config` the file that it names",
    frozenset({"task", "fractions"}): "is a sweep of small models; give it to `emergence-train grok`",
    frozenset({"method", "parameters"}): "is a sweep of W&B; give it to `wandb sweep`",
}


def of_a_run(path: Path) -> dict:
    """The tree in a run's YAML file. Raises InputError for a file that another command takes."""
    tree = read(path)
    for keys, what in OTHER_FILES.items():
        if keys <= set(tree):
            raise InputError(f"{path}: {what}")
    return tree
