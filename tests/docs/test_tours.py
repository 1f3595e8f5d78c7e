"""The tours' code runs and their configuration loads."""

import re
from pathlib import Path

import numpy as np

from emergence_train import config
from emergence_train.data import sources
from emergence_train.data_config import Source
from emergence_train.recorder.tables import POSITIONS, read
from support import ROOT

TOURS = ROOT / "docs" / "tours"


def blocks(page: str, language: str, folder: Path = TOURS) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (folder / page).read_text(encoding="utf-8"), flags=re.M | re.S)


def test_the_configuration_of_the_tour_loads(tmp_path):
    (text,) = blocks("train.md", "yaml")
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    assert config.load(tmp_path / "mine.yaml").model.layers == 4


def test_the_positions_of_the_tour_are_a_table(tmp_path, monkeypatch):
    """Another trainer's losses, written as the tour says, are read back."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    losses = draw.uniform(1, 5, (4, 16))
    names = {"loss_BT": losses, "right_BT": losses < 2, "step": 10, "tokens": 640, "lr": 1e-3}
    exec(blocks("analyze.md", "python")[0], names)
    names["recorder"].close()
    table = read(POSITIONS, tmp_path / "mine")
    np.testing.assert_allclose(table["loss_sum"], losses.sum(0))
    assert table["correct"].sum() == (losses < 2).sum() and set(table["count"]) == {4}


def test_the_recipe_for_source_code_keeps_every_file(tmp_path, monkeypatch):
    """A document a file, in the order of their paths, and nothing of another suffix."""
    monkeypatch.chdir(tmp_path)
    texts = {"a.py": "def one():\n    return 'ä'\n", "b/c.py": "two = 2\n", "b/notes.txt": "no code"}
    for name, text in texts.items():
        (tmp_path / "my-repository" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "my-repository" / name).write_text(text, encoding="utf-8")
    (code,) = blocks("data.md", "python", ROOT / "docs" / "how-to")
    exec(code, {})
    read = list(sources.documents(Source(domain="code", files=["code.jsonl"])))
    assert read == [texts["a.py"], texts["b/c.py"]]
