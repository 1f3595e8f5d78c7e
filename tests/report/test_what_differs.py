"""What is one thing is one column: numbers of a size that change together, and seeds."""

import re

import yaml

from emergence_train.report.collect import collect
from emergence_train.report.what_differs import settings, shown, together
from report.test_page import write_run


def sizes(*rows: tuple) -> dict[str, dict[str, str]]:
    keys = ("ffn", "heads", "width", "lr", "seed", "tasks.0.seed")
    return {f"r{number}": dict(zip(keys, map(str, row))) for number, row in enumerate(rows)}


def test_numbers_of_a_size_that_change_together_are_one():
    """Each value of one goes with one of the other; a rate that follows the size is a thing of its own."""
    named = sizes((192, 2, 64, 0.01, 1, 1), (256, 3, 96, 0.02, 1, 1), (256, 3, 96, 0.02, 2, 2))
    assert together(named) == [["width", "ffn", "heads"], ["lr"], ["seed", "tasks.0.seed"]]
    grouped = sizes((192, 2, 64, 0.01, 1, 1), (192, 4, 64, 0.01, 2, 1))
    grouped = {name: {key: each[key] for key in ("width", "ffn", "heads")} for name, each in grouped.items()}
    assert together(grouped) == [["width", "ffn"], ["heads"]], "of one width, heads say something of their own"
    assert together({}) == []


def test_the_table_has_a_column_a_thing(tmp_path):
    runs = []
    for number, (width, seed) in enumerate(((64, 1), (96, 1), (96, 2))):
        runs.append(write_run(tmp_path, f"r{number}", 1000, positions=8, seed=number))
        tree = {"model": {"width": width, "ffn": 3 * width}, "seed": seed, "tasks": [{"seed": seed}]}
        (runs[-1] / "config.yaml").write_text(yaml.safe_dump(tree))
    collected = collect(runs).runs
    head, *rows = [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall("<tr>(.*?)</tr>", shown(collected))
    ]
    assert head == ["run", "width, ffn", "seed, tasks.0.seed"]
    assert rows == [["r0", "64, 192", "1"], ["r1", "96, 288", "1"], ["r2", "96, 288", "2"]]
    assert settings(collected)["r2"] == {"seed": "2", "width": "96"} and settings(collected[:1]) == {}
