"""Runs that differ by their seed alone: grouped, and their mean and spread those of a plain loop."""

import html
import json
import re

import numpy as np
import pandas as pd
import pytest
import yaml

from emergence_train.recorder import tables
from emergence_train.report.collect import collect
from emergence_train.report.seeds import best, grouped, over_seeds, sections, spread
from emergence_train.report.what_differs import shown
from emergence_train.run_differences import differences, seed_groups
from report.test_page import write_run

QUANTILE = {2: 4.302653, 3: 3.182446}  # Student's t, 97.5%, by degrees of freedom: a printed table


def with_config(run, lr, seed):
    tree = {"name": run.name, "training": {"schedule": {"lr": lr}}, "seed": seed, "data": {"path": f"d{seed}"}}
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("seeds")
    kinds = [(0.1, 1), (0.1, 2), (0.1, 3), (0.2, 1)]
    return [
        with_config(write_run(root, f"lr{lr}-{seed}", positions=8, seed=seed, until=40), lr, seed) for lr, seed in kinds
    ]


def test_seeds_alone_make_a_group(runs, tmp_path):
    bare = [write_run(tmp_path, name, positions=4, until=10) for name in ("bare", "bare2")]
    assert seed_groups(runs + bare) == [[0, 1, 2], [3], [4], [5]]
    data = collect(runs)
    groups = grouped(data.runs)
    assert {name: [run.name for run in members] for name, members in groups.items()} == {
        "lr = 0.1": ["lr0.1-1", "lr0.1-2", "lr0.1-3"],
        "lr = 0.2": ["lr0.2-1"],
    }


def test_groups_are_named_by_what_tells_them_apart(tmp_path):
    """Sizes that differ in several keys at once, each trained to two ends: the first keys would name neither of the ends."""
    runs = []
    for width in (8, 16):
        for decay in (10, 20):
            for seed in (1, 2):
                run = write_run(tmp_path, f"{width}-{decay}-{seed}", positions=4, until=10, seed=seed)
                model = {"ffn": 3 * width, "heads": width // 4, "kv_heads": width // 4, "width": width}
                schedule = {"kind": "wsd", "decay_tokens": decay}
                tree = {"model": model, "training": {"schedule": schedule}, "seed": seed}
                tree["checkpoints"] = {"save_state": "last" if seed == 1 else "never"}  # which changes no run
                (run / "config.yaml").write_text(yaml.safe_dump(tree))
                runs.append(run)
    groups = grouped(collect(runs).runs)
    assert {name: len(members) for name, members in groups.items()} == {
        f"ffn = {3 * width}, decay_tokens = {decay}": 2 for width in (8, 16) for decay in (10, 20)
    }


def test_mean_and_spread_are_those_of_a_loop(runs):
    data = collect(runs)
    losses = []
    for run in runs[:3]:
        frame = tables.mean_loss(tables.read(tables.POSITIONS, run))
        losses.append(float(frame[(frame["split"] == "iid") & (frame["step"] == 40)]["loss"].iloc[0]))
    mean = sum(losses) / 3
    deviation = (sum((loss - mean) ** 2 for loss in losses) / 2) ** 0.5
    reach = QUANTILE[2] * deviation / 3**0.5
    text = f"{mean:.3f} [{mean - reach:.3f}, {mean + reach:.3f}]"
    ((_, _, body),) = sections(data)
    assert f'<th scope="row">lr = 0.1</th><td>3</td><td>{text}</td><td>{deviation:.4f}</td>' in body
    assert text in best(data.runs) and f"SD of {deviation:.4f}" in best(data.runs)
    assert "lr = 0.1, 3 seeds" in html.unescape(re.sub("<[^>]*>", " ", body))


def test_spread_of_four_and_of_none():
    values = np.array([1.0, 2.0, 3.0, 4.0])
    reach = QUANTILE[3] * (5 / 3) ** 0.5 / 2
    assert spread(values) == [f"2.500 [{2.5 - reach:.3f}, {2.5 + reach:.3f}]", f"{(5 / 3) ** 0.5:.4f}"]
    assert spread(values[:1]) == ["1.000", "–"] and spread(values[:0]) == ["–", "–"]


def test_only_common_tokens_count():
    curve = pd.DataFrame({"tokens": [1, 2, 3], "loss": [4.0, 3.0, 2.0]})
    other = pd.DataFrame({"tokens": [2, 3, 4], "loss": [5.0, np.nan, 1.0]})
    rows = over_seeds([curve, other])
    assert rows.to_dict("list") == {"tokens": [2], "mean": [4.0], "low": [3.0], "high": [5.0]}


def test_without_two_seeds_there_is_no_section(runs):
    data = collect(runs[2:])
    assert sections(data) == [] and best(data.runs) == ""


def begun_from(run, parent, step, tokens):
    known = {"run": parent.name, "path": str(parent), "step": step, "tokens": tokens}
    (run / "parent.json").write_text(json.dumps(known))
    return run


@pytest.fixture
def branches(tmp_path):
    """A decay branch of each of two seeds, and one from the first seed's parent at a step after its own decay."""
    schedule = {"kind": "wsd", "lr": 0.1, "decay_tokens": 30}
    parents = []
    for seed in (1, 2):
        parents.append(write_run(tmp_path, f"stable-{seed}", positions=4, until=10, seed=seed))
        tree = {"training": {"schedule": schedule, "tokens": 100}, "seed": seed}
        (parents[-1] / "config.yaml").write_text(yaml.safe_dump(tree))
    runs = []
    for number, (parent, step) in enumerate([(0, 6), (1, 6), (0, 9)]):
        run = with_config(write_run(tmp_path, f"branch-{number}", positions=4, until=10, seed=number), 0.1, parent + 1)
        runs.append(begun_from(run, parents[parent], step, 10 * step))
    return runs


def test_branches_of_other_steps_are_no_seeds(branches):
    """Of the parents' seeds at one step they are seeds; from another step, or another schedule of the parent, they are not."""
    assert seed_groups(branches) == [[0, 1], [2]]
    alone = collect([branches[0], branches[2]]).runs
    assert sections(collect([branches[0], branches[2]])) == [] and best(alone) == ""
    assert [each["from"] for each in differences(branches)] == ["stable-1@6", "stable-2@6", "stable-1@9 (decayed)"]
    (branches[0].parent / "stable-2" / "config.yaml").write_text("training: {schedule: {kind: constant}}\nseed: 2\n")
    assert seed_groups(branches[:2]) == [[0], [1]]


def test_groups_of_branches_name_no_parent_of_one_seed(branches):
    """Of a parent a seed the step that they share, of one parent its name; a run of its own began from scratch."""
    runs = [*branches, branches[0].parent / "stable-1", branches[0].parent / "stable-2"]
    for run in runs:  # which leaves what they began from as the difference
        (run / "config.yaml").write_text(
            f"training: {{schedule: {{kind: wsd, lr: 0.1}}}}\nseed: {int(run.name[-1]) % 2}\n"
        )
    groups = grouped(collect(runs).runs)
    assert {name: [run.name for run in members] for name, members in groups.items()} == {
        "from = step 6": ["branch-0", "branch-1"],
        "from = stable-1@9": ["branch-2"],
        "from = scratch": ["stable-1", "stable-2"],
    }
    assert "The lowest mean over seeds has <b>from = s" in best(collect(runs).runs)
    assert [each["from"] for each in differences([runs[2], runs[3]])] == ["stable-1@9", "scratch"]


def test_parents_moved_with_their_branches_are_read(branches, tmp_path):
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    tmp_path.rename(moved)
    assert seed_groups([moved / run.name for run in branches]) == [[0, 1], [2]]


def test_a_repeat_is_no_seed(tmp_path):
    """A seed trained twice: on a GPU its bits differ, and its spread is not that of seeds."""
    runs = [
        with_config(write_run(tmp_path, name, positions=4, until=10, seed=number), 0.1, seed)
        for number, (name, seed) in enumerate([("a", 1), ("again", 1), ("b", 2), ("other-data", 2)])
    ]
    (runs[3] / "data.json").write_text('{"data": "prepared anew"}')
    assert seed_groups(runs) == [[0, 2], [1], [3]]
    assert best(collect(runs[:2]).runs) == "" and "They are repeats of one seed" in shown(collect(runs[:2]).runs)
    assert "repeats" not in shown(collect([runs[2], runs[3]]).runs)
