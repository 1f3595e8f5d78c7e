"""A function takes the sections of the configuration that it reads: who may have the whole tree is listed here, by name.

Read from the source: a parameter, an attribute or a name of the class Config, and a parameter called config of no known type.
"""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "emergence_train"
# What a start of a run assembles and compares as a whole. The list may only shrink.
TAKE_THE_TREE = {
    "training.run.train",
    "training.run._train",
    "training.run._build_session",
    "training.run._given",
    "training.startup.agree_on",
    "training.startup.resolve",
    "training.run_directory.claim",
    "training.run_directory._extended",
    "training.run_directory.write_config",
}
# Who reads a configuration from a file: the commands, and what compares a run with an older one.
READ_THE_TREE = {
    "cli_runs.verb_config",
    "cli_runs.verb_plan",
    "cli_runs.verb_prepare",
    "cli_runs.verb_train",
    "convert.hf_export.export",
    "convert.hf_import._before",
    "convert.hf_import._config",
    "convert.hf_import._data",
    "data.lineage.trained_samples",
    "evaluation.offline.evaluate",
    "evaluation.memorisation.probe_run",
    "evaluation.text_samples.continue_texts",
    "ladder.file.row_config",
    "tracking.sync.sync",
    "training.branch.begin",
    "training.run_directory._extended",
    "training.run_directory._remedy",
    "training.run_directory._with_defaults",
    "training.run_directory.keep_data_path",
    "training.run_directory.other_tasks",
}
READERS = ("load", "load_run", "model_validate", "model_validate_json", "model_construct")


class Configurations(ast.NodeVisitor):
    """Collects what of a module takes, keeps or reads the class Config, by the names under which the module knows it."""

    def __init__(self, module: str, tree: ast.Module) -> None:
        self.place, self.take, self.read, self.keep = [module], set(), set(), set()
        self.modules, self.classes, self.functions = set(), set(), set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "emergence_train":
                self.modules |= {alias.asname or alias.name for alias in node.names if alias.name == "config"}
            if isinstance(node, ast.ImportFrom) and node.module == "emergence_train.config":
                self.classes |= {alias.asname or alias.name for alias in node.names if alias.name == "Config"}
                self.functions |= {alias.asname or alias.name for alias in node.names if alias.name in READERS}
        self.visit(tree)

    def _names_config(self, node: ast.AST | None) -> bool:
        """Whether an annotation or a value says Config anywhere, in quotes too."""
        names = [*self.classes, *(f"{module}.Config" for module in self.modules)]
        return node is not None and any(re.search(rf"\b{re.escape(name)}\b", ast.unparse(node)) for name in names)

    def _within(self, node) -> None:
        self.place.append(node.name)
        self.generic_visit(node)
        self.place.pop()

    visit_ClassDef = _within

    def visit_FunctionDef(self, node) -> None:
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        for argument in filter(None, given):
            unknown = argument.arg in ("config", "cfg") and argument.annotation is None
            if unknown or self._names_config(argument.annotation):
                self.take.add(".".join([*self.place, node.name]))
        self._within(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_AnnAssign(self, node) -> None:
        if self._names_config(node.annotation):
            self.keep.add(".".join(self.place))
        self.generic_visit(node)

    def visit_Assign(self, node) -> None:
        """self.x = config keeps the tree beyond the call that may take it."""
        kept = any(isinstance(target, ast.Attribute) for of in node.targets for target in ast.walk(of))
        values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
        in_function = ".".join(self.place) in self.take
        if kept and in_function and any(isinstance(value, ast.Name) and value.id == "config" for value in values):
            self.keep.add(".".join(self.place))
        self.generic_visit(node)

    def visit_Call(self, node) -> None:
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr in READERS:
            owner = called.value
            if self._names_config(owner) or (isinstance(owner, ast.Name) and owner.id in self.modules):
                self.read.add(".".join(self.place))
        if isinstance(called, ast.Name) and called.id in {*self.functions, *self.classes}:
            self.read.add(".".join(self.place))
        self.generic_visit(node)


def configurations(module: str, source: str) -> Configurations:
    return Configurations(module, ast.parse(source))


def of_the_package() -> list[Configurations]:
    paths = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "config.py")
    names = [".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in paths]
    return [configurations(name, path.read_text(encoding="utf-8")) for name, path in zip(names, paths)]


def test_only_a_start_takes_the_whole_tree():
    seen = of_the_package()
    assert set().union(*(module.take for module in seen)) == TAKE_THE_TREE
    assert set().union(*(module.read for module in seen)) == READ_THE_TREE
    assert set().union(*(module.keep for module in seen)) == set(), "nothing keeps it"


def test_every_way_to_have_the_tree_is_seen():
    """The check itself, on a source that does all of it."""
    source = """
from emergence_train import config as configs
from emergence_train.config import Config as Tree, Data, load_run as opened
class Holder:
    tree: "Tree | None"
    def __init__(self, other: Data, tree: configs.Config): self.data = other
    def keep(self, config: Tree): self.a, self.b = 1, config
def one(config): ...
def two(*, data: Data, among: list[Tree]): return opened(data)
def three(path): return configs.load(path)
def four(tree): return Tree.model_validate(tree)
def five(model: Data, width: int): return Data.model_validate(model)
"""
    seen = configurations("m", source)
    assert seen.take == {"m.Holder.__init__", "m.Holder.keep", "m.one", "m.two"}
    assert seen.read == {"m.two", "m.three", "m.four"} and seen.keep == {"m.Holder", "m.Holder.keep"}
