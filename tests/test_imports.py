"""Direction of imports: every import of the two packages, also inside functions, read from the source.

A module may import from its own room and from rooms on lower floors.
"""

import ast
import functools
import graphlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"emergence_train": ROOT / "emergence_train", "emergence_kernels": ROOT / "kernels" / "emergence_kernels"}

# Rooms of emergence_train, the lowest floor first; the longest name that fits a module is its room.
FLOORS = (
    ("errors", "formatting", "section", "garbage_collection"),
    ("waiting",),
    ("input_files",),
    ("files",),
    ("cluster",),
    ("recorder",),
    (
        "models",
        "optim",
        "callbacks",
        "logging_config",
        "data_config",
        "interpolation",
        "config_problem",
        "config_tree",
        "run_differences",
    ),
    ("config",),
    ("parallel", "tracking", "config_listing"),
    ("checkpoint", "faults", "data"),
    ("evaluation", "planning"),
    (
        "analysis",
        "analysis.results",
        "analysis.figures",
        "analysis.planned_schedule",
        "analysis.position_matrix",
        "analysis.logs",
    ),
    ("analysis.composition_share", "analysis.drawing", "analysis.scores", "analysis.outlook"),
    ("analysis.planned_series",),
    ("analysis.runs", "analysis.position_weights"),
    ("analysis.temporal",),
    ("analysis.emergence", "analysis.grokking", "analysis.memorisation"),
    ("grokking",),
    ("report", "training", "convert", "doctor", "opened_run", "watch"),
    ("ladder",),
    ("cli_arguments",),
    ("cli_runs",),
    ("cli_analyses",),
    ("cli",),
    ("__main__",),
)
# Rooms of emergence_kernels, likewise: an operation needs the backends, attention rotary, feed_forward SwiGLU.
KERNEL_FLOORS = (
    ("backends",),
    ("adamw", "cross_entropy", "fp8_linear", "rms_norm", "rotary", "swiglu"),
    ("attention", "feed_forward"),
    ("modules", "llama_patch"),
    ("bench",),
)
# (room, rooms that it never imports although they are lower): the analyses read tables of any origin
TRAINING_ONLY = ("models", "data", "evaluation", "checkpoint", "parallel", "cluster", "faults", "tracking")
TRAINING_ONLY += ("optim.base", "optim.adamw", "optim.muon", "optim.muon_step", "optim.groups", "optim.registry")
NEVER = {
    "analysis": TRAINING_ONLY,
    "report": TRAINING_ONLY,
    "watch": tuple(name for name in TRAINING_ONLY if name != "models"),  # of which it takes the devices' rates
}
# Modules of the analyses that may draw or write files; the others return results
WRITERS = {
    "analysis.drawing",
    "analysis.position_weights.output",
    "analysis.temporal.output",
    "analysis.emergence.output",
    "analysis.grokking.output",
    "analysis.memorisation.output",
}
# Modules of the analyses that the report may import: results, tables, descriptions of figures; report.collect runs the analyses.
SHOWN = {
    "analysis.figures",
    "analysis.intervals",
    "analysis.results",
    "analysis.temporal.figures",
    "analysis.temporal.result",
    "analysis.temporal.tables",
    "analysis.emergence.figures",
    "analysis.emergence.finding",
    "analysis.emergence.result",
    "analysis.grokking.figures",
    "analysis.grokking.result",
    "analysis.memorisation.figures",
    "analysis.memorisation.result",
}
COLLECTED = {
    "analysis.emergence",
    "analysis.temporal",
    "analysis.position_matrix",
    "analysis.logs",
    "analysis.scores",
}


def _sources() -> dict[str, Path]:
    """Every module of both packages by its dotted name."""
    modules = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


MODULES = _sources()


@functools.cache
def _imported(module: str, path: Path) -> set[str]:
    """Dotted names that the source imports: modules where they are ours, else what the statement says."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            full = {f"{base}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else base for name in full}
    return names


@functools.cache
def _arrows() -> dict[str, set[str]]:
    """Module to modules of ours. Importing a.b.c also runs a and a.b, unless the importer lives in them."""
    arrows = {}
    for module, path in MODULES.items():
        imported = {name for name in _imported(module, path) if name in MODULES}
        for name in list(imported):
            parts = name.split(".")
            above = {".".join(parts[:k]) for k in range(1, len(parts))}
            imported |= {package for package in above if not f"{module}.".startswith(f"{package}.")}
        arrows[module] = imported - {module}
    return arrows


def _short(module: str) -> str:
    return module.removeprefix("emergence_train").removeprefix("emergence_kernels").lstrip(".")


def _room(module: str) -> tuple[int, str] | None:
    """(floor, room) of a module of its package; None: it has none."""
    name = _short(module)
    floors = KERNEL_FLOORS if module.startswith("emergence_kernels") else FLOORS
    fits = [(floor, room) for floor, rooms in enumerate(floors) for room in rooms if f"{name}.".startswith(f"{room}.")]
    return max(fits, key=lambda fit: len(fit[1])) if fits else None


def _framework() -> list[str]:
    return sorted(module for module in MODULES if module.startswith("emergence_train."))


def _kernels() -> list[str]:
    return sorted(module for module in MODULES if module.startswith("emergence_kernels."))


def test_there_are_no_circles():
    try:
        graphlib.TopologicalSorter(_arrows()).prepare()
    except graphlib.CycleError as error:
        pytest.fail("imports run in a circle: " + " <- ".join(error.args[1]))


def test_every_module_has_a_room():
    assert [module for module in _framework() + _kernels() if _room(module) is None] == []


def test_no_import_points_up():
    against: dict[str, set[str]] = {}
    for module in _framework() + _kernels():
        floor, room = _room(module)
        for target in _arrows()[module]:
            if not target.startswith(f"{module.partition('.')[0]}."):
                continue
            lower, other = _room(target)
            if lower > floor or (lower == floor and other != room):
                against.setdefault(_short(module), set()).add(_short(target))
    assert against == {}


@pytest.mark.parametrize("room", NEVER)
def test_the_analyses_read_tables_alone(room):
    """They also read what other frameworks wrote: no model, no data set, no process group."""
    for module in _framework():
        if f"{_short(module)}.".startswith(f"{room}."):
            for target in map(_short, _arrows()[module]):
                assert not any(f"{target}.".startswith(f"{name}.") for name in NEVER[room]), (module, target)


def test_analyses_return_results_and_writers_write_them():
    writers = set()
    for module in _framework():
        if _short(module).startswith("analysis."):
            names = {_short(name) for name in _imported(module, MODULES[module])}
            if names & WRITERS or any(name.split(".")[0] in ("files", "matplotlib") for name in names):
                writers.add(_short(module))
    assert writers == WRITERS


def test_report_reads_results_and_fits_nothing():
    for module in _framework():
        if _short(module).startswith("report."):
            imported = _imported(module, MODULES[module])
            assert not any(name.split(".")[0] == "scipy" for name in imported), module
            names = {_short(name) for name in imported if name in MODULES}
            analyses = {name for name in names if name.startswith("analysis")}
            options = (
                {"analysis.logs", "analysis.outlook", "analysis.scores"}
                if _short(module) == "report.reading"
                else set()
            )
            assert analyses <= (COLLECTED if _short(module) == "report.collect" else SHOWN | options), module


def test_results_are_data_alone():
    """Reading a result needs no fit, no table and no solver."""
    for wing in ("temporal", "emergence", "grokking", "memorisation", "position_weights"):
        names = _imported(f"emergence_train.analysis.{wing}.result", MODULES[f"emergence_train.analysis.{wing}.result"])
        assert names <= {"dataclasses", "typing", "emergence_train.analysis.results"}


def test_kernels_import_nothing_of_the_framework():
    assert {
        m: t for m in MODULES if m.startswith("emergence_kernels") for t in _arrows()[m] if "emergence_train" in t
    } == {}


def test_recorder_needs_torch_numpy_pandas_and_pyarrow_only():
    """So any trainer can write the tables: no configuration, no DeepSpeed."""
    allowed = {*sys.stdlib_module_names, "torch", "numpy", "pandas", "pyarrow"}
    reached, waiting = set(), [module for module in _framework() if _short(module).startswith("recorder")]
    while waiting:
        module = waiting.pop()
        reached.add(module)
        waiting += _arrows()[module] - reached
    outside = {name.split(".")[0] for module in reached for name in _imported(module, MODULES[module])} - {
        "emergence_train"
    }
    assert outside <= allowed
    assert "emergence_train.config" not in reached


def test_benchmarks_import_nothing_of_the_tests():
    tests = {path.stem for path in (ROOT / "tests").rglob("*.py")} | {"tests"}
    for path in (ROOT / "benchmarks").rglob("*.py"):
        assert not {name.split(".")[0] for name in _imported(path.stem, path)} & tests, path


def test_training_knows_no_kind_of_model():
    """Adding a model is one file: training takes models by the registry and their base class alone."""
    for module in _framework():
        if _short(module).startswith("training."):
            models = {name for name in map(_short, _arrows()[module]) if name.startswith("models.")}
            assert not models & {"models.decoder", "models.hf_model"}, module
