"""The Python API: signatures and docstrings of what packages list in `__all__`, read by inspect."""

import enum
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from types import ModuleType

from docs.site_pages import reference

# Modules that are public entirely: every function that they define
WHOLE = ("emergence_train.recorder.tables",)
PREFIX = re.compile(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z_])")  # the modules of a name
LINE = 88
# Packages that only the framework itself calls
INNER = ("emergence_kernels.bench",)


def framework() -> str:
    """The page of emergence_train."""
    lines = ["# Python API", "", "For the analyses of your own logs, and for other trainers that write our tables.", ""]
    for module in public_modules("emergence_train"):
        lines += _module(module)
    return "\n".join(lines)


def kernels() -> str:
    """The page of emergence_kernels."""
    package = importlib.import_module("emergence_kernels")
    lines = ["# Kernels API", "", inspect.getdoc(package), ""]
    for module in public_modules("emergence_kernels"):
        lines += _module(module, heading=module is not package)
    return "\n".join(lines)


def public_modules(package: str) -> Iterator[ModuleType]:
    """The package and its sub-packages with an `__all__`."""
    root = importlib.import_module(package)
    names = [package, *(m.name for m in pkgutil.walk_packages(root.__path__, f"{package}.") if m.ispkg), *WHOLE]
    for name in names:
        if name.startswith(package) and not name.startswith(INNER):
            module = importlib.import_module(name)
            if public_names(module):
                yield module


def public_names(module: ModuleType) -> list[str]:
    if module.__name__ in WHOLE:
        return [
            name
            for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
        ]
    return list(getattr(module, "__all__", ()))


def _module(module: ModuleType, heading: bool = True) -> list[str]:
    first = (inspect.getdoc(module) or "").split("\n\n")[0]
    lines = [f"## {module.__name__}", "", first, ""] if heading else []
    for name in public_names(module):
        lines += _member(name, getattr(module, name), "###" if heading else "##")
    return lines


def _member(name: str, value: object, level: str) -> list[str]:
    if isinstance(value, Mapping):
        value = tuple(value)  # what is behind a name may print its address
    if not callable(value):
        return [f"{level} {name}", "", f"`{value!r}`", ""]
    if is_dataclass(value) or hasattr(value, "_fields"):
        return [f"{level} {name}", "", reference.own_doc(value), "", reference.field_table(value)]
    lines = [f"{level} {name}", "", "```python", _signature(name, value), "```", ""]
    documented = inspect.getdoc(value) or ""
    lines += [markdown(documented) if not documented.startswith(f"{name}(") else "", ""]
    if inspect.isclass(value) and not issubclass(value, Exception | enum.Enum):
        for method, function in vars(value).items():
            public = not method.startswith("_") and inspect.isfunction(function)
            if public and inspect.getdoc(function) and function.__module__ == value.__module__:
                lines += [f"{level}# {name}.{method}", "", "```python", _signature(method, function), "```", ""]
                lines += [markdown(inspect.getdoc(function)), ""]
    return lines


def _signature(name: str, value: object) -> str:
    """`name(...)` as it may be typed: annotations without their modules, one argument per line where it is long."""
    try:
        signature = inspect.signature(value)
    except ValueError:
        return name
    whole = PREFIX.sub("", f"{name}{signature}")
    if len(whole) <= LINE:
        return whole
    parts, lines = [], signature.parameters.values()
    for before, part in zip([None, *lines], lines):
        named = part.kind is part.KEYWORD_ONLY and (before is None or before.kind is not part.KEYWORD_ONLY)
        parts += (["*"] if named else []) + [PREFIX.sub("", str(part))]
    result = signature.return_annotation
    arrow = "" if result is signature.empty else f" -> {PREFIX.sub('', inspect.formatannotation(result))}"
    return f"{name}(\n    " + ",\n    ".join(parts) + f",\n){arrow}"


def markdown(docstring: str) -> str:
    """A docstring as Markdown: Args, Returns and Raises become lists; the rest already is."""
    lines, section = [], False
    for line in docstring.splitlines():
        if re.fullmatch(r"(Args|Arguments|Returns|Raises|Yields|Attributes|Shapes?|Examples?):", line):
            lines += [f"**{line.rstrip(':')}**", ""]
            section = True
        elif section and line.startswith("      "):
            lines.append("  " + line.strip())
        elif section and line.startswith("    "):
            entry = re.match(r"    ([\w*, .`]+?)(?: \(.*?\))?: (.*)", line)
            lines.append(f"- `{entry[1].strip('`')}`: {entry[2]}" if entry else f"- {line.strip()}")
        else:
            section = section and not line
            lines.append(line)
    return "\n".join(lines)
