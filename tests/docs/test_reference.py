"""The generated reference leaves nothing out, and the pages name only what exists."""

import inspect
import re
import subprocess
from dataclasses import dataclass, field
from typing import Annotated

import pytest

from docs.site_pages import api, markdown, reference
from emergence_kernels import adamw_step
from emergence_train import config, recorder
from emergence_train.recorder.columns import DESCRIPTIONS
from emergence_train.recorder.tables import TABLES
from support import ROOT

PICTURE_BYTES = 150_000


def test_every_configuration_key_is_described_in_the_page():
    page = reference.configuration()
    for path, section in reference.sections(config.Config):
        for name, key in section.model_fields.items():
            assert key.description, f"{path}.{name}: give its Field a description"
            assert key.description[:30] in page, f"{path}.{name}"


def test_every_column_is_described_with_its_type():
    columns = {column for table in TABLES.values() for column in [*table.columns, *dict(table.extra)]}
    assert set(DESCRIPTIONS) == columns
    assert "| `loss_sq_sum` | double | sum of their squared losses, nats² | ≥ 0 |" in reference.tables()


def test_every_command_and_argument_has_help():
    page = reference.command_line()
    for name, parser in reference.commands():
        assert f"## {name}\n" in page
        for action in parser._actions:
            assert action.help, f"{name} {action.dest}"


CONTRACT = {
    "analyze temporal": "run split fit_fraction fit_until_tokens selected forecast final models step tokens loss low95 high95 "
    "name mse r2 heldout_points ranking",
    "analyze emergence": "tasks task metric verdict probability eta size_effect value low95 high95 p rows sizes",
    "grok": "runs params fraction weight_decay seed outcome train_90 heldout_90 updates critical_fraction value low95 high95 "
    "trend p",
    "memorise": "shares runs seen extracted items share low95 high95 of_100 loss_gain p",
    "analyze weights": "rows variant split region step seeds loss difference low95 high95 p",
}


@pytest.mark.parametrize("name", CONTRACT)
def test_result_page_has_the_keys_others_rely_on(name):
    page = reference.results()
    part = page[page.index(f"## {name}\n") :].split("\n## ")[0]
    for key in CONTRACT[name].split():
        assert f"| `{key}` |" in part, key


def test_result_page_says_what_a_key_means():
    assert "0 where the table has none" in reference.results()


def test_dataclass_fields_have_type_comment_and_absence():
    @dataclass(frozen=True)
    class Example:
        loss: float | None = field(default=None, metadata={"absent": True})  # nats
        unit: str = "nats"

    assert reference.field_comments(Example) == {"loss": "nats"}
    assert reference.field_table(Example).splitlines()[2:] == [
        "| `loss` | `float | None` | nats (key left out where there is none) |",
        "| `unit` | `str` | `nats` |",
    ]


def test_annotations_give_unit_and_meaning():
    class Unit(str):
        pass

    nats = Annotated[float, Unit("nats")]

    @dataclass(frozen=True)
    class Example:
        loss: Annotated[nats | None, "at the end"]
        first: float = field(metadata={"key": "50"})

    assert reference.field_table(Example).splitlines()[2:] == [
        "| `loss` | `float | None` | nats | at the end |",
        "| `50` | `float` |  |  |",
    ]


def test_long_signatures_take_an_argument_a_line():
    def example(
        first: "list[int]", *, second_of_them: float = 1.5, third_of_them: str = "x", fourth: int = 0
    ) -> None: ...

    assert api._signature("example", example).splitlines() == [
        "example(",
        "    first: 'list[int]',",
        "    *,",
        "    second_of_them: float = 1.5,",
        "    third_of_them: str = 'x',",
        "    fourth: int = 0,",
        ") -> None",
    ]


@pytest.mark.parametrize(
    "function", [recorder.token_losses, recorder.Recorder.add, recorder.Recorder.evaluation, adamw_step]
)
def test_what_loops_call_describes_its_arguments(function):
    """Units and shapes are in no signature."""
    words = set(re.findall(r"\w+", inspect.getdoc(function)))
    assert set(inspect.signature(function).parameters) - {"self"} <= words


def test_docstring_sections_become_lists():
    text = api.markdown("One.\n\nArgs:\n    x: (B, T),\n        nats.\n\nReturns:\n    A sum.\n\nMore.")
    assert text == "One.\n\n**Args**\n\n- `x`: (B, T),\n  nats.\n\n**Returns**\n\n- A sum.\n\nMore."


def test_api_page_prints_names_and_no_addresses():
    """The page of a commit is always the same; a default that is empty leaves no empty code."""
    page = api.framework()
    assert " at 0x" not in page and "`('tensorboard', 'mlflow', " in page
    assert "the tokenizer that a run directory names |" in page and "`` |" not in page


def test_cells_keep_bars_of_code_and_escape_others():
    assert markdown.table(["a"], [["x | `y | z`"]]).splitlines()[2] == "| x \\| `y | z` |"


def test_api_pages_have_every_public_operation():
    import emergence_kernels

    page = api.kernels()
    for name in emergence_kernels.__all__:
        assert f"## {name}\n" in page


def _tracked(*patterns: str) -> list[str]:
    done = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.split() if done.returncode == 0 else []


def test_pages_named_in_the_code_exist():
    for name in _tracked("*.py", "*.yaml", "*.sbatch", "*.md", "Makefile"):
        for page in re.findall(r"\bdocs/[\w/.-]+\.md\b", (ROOT / name).read_text(encoding="utf-8")):
            assert (ROOT / page).is_file(), f"{name} names {page}"


@pytest.mark.parametrize(
    "page", sorted([ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")]), ids=lambda path: path.name
)
def test_files_named_in_the_pages_exist(page):
    """Paths in code spans that begin with a folder whose files the reader is sent to."""
    for path in re.findall(r"`((?:configs|benchmarks|docs)/[\w/.-]+\.\w+)`", page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), path


def test_pictures_are_small_and_readme_short():
    pictures = list((ROOT / "docs" / "images").iterdir())
    assert len(pictures) >= 3
    assert all(picture.stat().st_size < PICTURE_BYTES for picture in pictures)
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130
