"""YAML as configurations are written in it: 5e3 and 3e-4 are numbers, and a duplicate key is an error."""

import re
from pathlib import Path
from typing import Any

import yaml

from emergence_train.errors import InputError

ERRORS = (yaml.YAMLError, ValueError, RecursionError)  # of text that is not valid YAML


class _Loader(yaml.SafeLoader):
    """YAML in which 5e3 is a number, and a duplicate key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is listed twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read(path: Path) -> dict:
    """The mapping in a configuration file. Raises InputError."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except FileNotFoundError:
        raise InputError(f"{path}: no such configuration file; see configs/ for examples") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path}: a configuration is a mapping of keys to values; see configs/ for examples")
    return tree


def parse_value(text: str) -> Any:
    """The value that an override gives a key. Raises one of ERRORS."""
    value = yaml.load(text, _Loader)
    return _number(value) if isinstance(value, str) else value


def _number(text: str) -> Any:
    """Convert strings such as 3e-4, which YAML 1.1 does not read as numbers."""
    try:
        return float(text) if any(character.isdigit() for character in text) else text
    except ValueError:
        return text
