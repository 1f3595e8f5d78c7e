"""What a branch was trained on: its own samples since its first step, and its parents' before, by a walk over all of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from emergence_train.checkpoint import format as checkpoints
from emergence_train.config import load_run
from emergence_train.data import identity
from emergence_train.data.dataset import Dataset
from emergence_train.data.lineage import trained_samples
from emergence_train.data.prepare import prepare
from emergence_train.errors import InputError
from emergence_train.evaluation.memorisation import Probe, probe_run, sequences, trained_or_not
from support import data_of, small_config

PROBE = Probe(prefix=12, continuation=4, items=200)
BATCH = 8


@pytest.fixture(scope="module")
def other_data(data_path, tmp_path_factory):
    """Another text, cut by the same tokenizer."""
    path = tmp_path_factory.mktemp("other") / "data"
    tokenizer = {"file": str(data_path / "tokenizer.json")}
    sources = [{"domain": "books", "sample": "books", "limit_documents": 20}]
    prepare(data_of(path, tokenizer=tokenizer, sources=sources, ood=[]), lambda line: None)
    return path, sources


def run_of(
    folder: Path, name: str, data: Path, parent: tuple[Path, int] | None = None, **changes
) -> tuple[Path, Dataset]:
    """The directory of a run over `data`; `parent`: that and the step that it began from. As older versions left it."""
    tree = small_config(data, folder)
    tree["data"] |= changes.pop("of_data", {})
    tree["training"]["batch"] = changes.pop("batch", BATCH)
    run = folder / name
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(tree | {"name": name} | changes))
    config = load_run(run)
    dataset = Dataset(config.data, config.seed)
    identity.keep(run, dataset)
    if parent is not None:
        tokens = parent[1] * load_run(parent[0]).step_tokens
        known = {"run": parent[0].name, "path": str(parent[0]), "step": parent[1], "tokens": tokens}
        (run / "parent.json").write_text(json.dumps(known | {"first_step": tokens // config.step_tokens}))
    return run, dataset


def drawn(*parts: tuple[Dataset, int, int]) -> set[bytes]:
    """All sequences of the probe's length in samples [begin, end) of each data set."""
    return {
        row.tobytes()
        for dataset, begin, end in parts
        for index in range(begin, end)
        for row in np.lib.stride_tricks.sliding_window_view(dataset.sample(index), PROBE.length)
    }


@pytest.mark.parametrize("change", [{"seed": 9}, {"of_data": "weights"}, {"batch": 4}, {"seed": 9, "batch": 16}])
def test_trained_sequences_are_what_was_drawn(data_path, tmp_path, change):
    """Before the first pass has ended, most of the child's own samples up to its first step were drawn by nobody."""
    if "of_data" in change:
        sources = small_config(data_path, tmp_path)["data"]["sources"]
        change = {"of_data": {"sources": [sources[0] | {"weight": 1}, sources[1] | {"weight": 3}]}}
    parent, theirs = run_of(tmp_path, "parent", data_path)
    child, own = run_of(tmp_path, "child", data_path, (parent, 8), **change)
    grandchild, last = run_of(tmp_path, "grandchild", data_path, (child, 80 // change.get("batch", BATCH)), seed=11)
    for run, dataset, end, parts in (
        (child, own, 96, [(theirs, 0, 64), (own, 64, 96)]),
        (grandchild, last, 96, [(theirs, 0, 64), (own, 64, 80), (last, 80, 96)]),
    ):
        stretches = trained_samples(run, dataset, end, print)
        assert sum(stretch.samples for stretch in stretches) == end
        trained, controls, seen = sequences(stretches, PROBE)
        assert len(trained) == PROBE.items and (seen >= 1).all()
        real = drawn(*parts)
        assert all(row.tobytes() in real for row in trained) and not any(row.tobytes() in real for row in controls)


def test_another_batch_is_one_order(data_path, tmp_path):
    """As a run without a parent, also where the parent was deleted and parent.json has it."""
    parent, theirs = run_of(tmp_path, "parent", data_path)
    child, own = run_of(tmp_path, "child", data_path, (parent, 8), batch=4)
    (stretch,) = trained_samples(child, own, 96, print)
    assert (stretch.begin, stretch.end) == (0, 96)
    known = json.loads((child / "parent.json").read_text())
    (child / "parent.json").write_text(json.dumps(known | {"same_samples": True}))
    shutil.rmtree(parent)
    (stretch,) = trained_samples(child, own, 96, print)
    assert (stretch.begin, stretch.end) == (0, 96)


def test_other_data_are_trained_since_the_first_step(data_path, other_data, tmp_path):
    """The parent's three passes are trained on; of the child's, 16 of its samples are too few to know."""
    place, sources = other_data
    parent, theirs = run_of(tmp_path, "parent", data_path)
    step = int(3 * max(np.divide(theirs.sampler.windows, theirs.sampler.quotas)) * 8192 / BATCH) + 1
    child, own = run_of(tmp_path, "child", place, (parent, step), of_data={"sources": sources, "ood": []})
    stretches = trained_samples(child, own, step * BATCH + 16, print)
    before = np.stack([theirs.sample(index)[: PROBE.length] for index in range(20)])
    since = np.stack([own.sample(index)[: PROBE.length] for index in range(40)])  # the child's numbers, drawn by nobody
    nowhere = np.full((1, PROBE.length), 1)
    kept, seen = trained_or_not(stretches, np.concatenate([before, since, nowhere]), "child", lambda line: None)
    assert (kept[:20] == before).all() and (seen[:20] >= 3).all()
    assert seen[-1] == 0 and (seen == 0).sum() == 1 and len(kept) < 40
    trained, controls, _ = sequences(stretches, PROBE)
    real = drawn((theirs, 0, step * BATCH), (own, step * BATCH, step * BATCH + 16))
    assert all(row.tobytes() in real for row in trained) and not any(row.tobytes() in real for row in controls)


def test_a_deleted_parent_of_another_order_is_refused(data_path, tmp_path):
    parent, _ = run_of(tmp_path, "parent", data_path)
    child, own = run_of(tmp_path, "child", data_path, (parent, 8), seed=9)
    moved = parent.rename(tmp_path / "moved")
    with pytest.raises(InputError, match="began from .*parent@8, which is missing, .*; restore it"):
        trained_samples(child, own, 96, print)
    moved.rename(parent)
    assert len(trained_samples(child, own, 96, print)) == 2


def test_of_an_imported_parent_only_its_own_steps_count(data_path, tmp_path, monkeypatch):
    parent, _ = run_of(tmp_path, "parent", data_path)
    child, own = run_of(tmp_path, "child", data_path, (parent, 8), seed=9)
    monkeypatch.setattr("emergence_train.data.lineage.configs.load_run", lambda run: ImportedRun)
    lines = []
    (stretch,) = trained_samples(child, own, 96, lines.append)
    assert (stretch.begin, stretch.end) == (64, 96)
    assert "an imported run, whose training data are unknown; only what was trained on since then counts" in lines[0]
    monkeypatch.undo()
    monkeypatch.setattr(checkpoints, "newest", lambda run, step: run)
    monkeypatch.setattr(checkpoints, "read_state", lambda folder: {"step": 8})
    monkeypatch.setattr("emergence_train.evaluation.memorisation.trained_samples", lambda *given: [Nothing])
    with pytest.raises(InputError, match="step 8: nothing that it was trained on is known; give a later --step"):
        probe_run(child, PROBE)


class ImportedRun:
    imported = True


class Nothing:
    samples = 0
    dataset = type("Data", (), {"sequence": 32})
