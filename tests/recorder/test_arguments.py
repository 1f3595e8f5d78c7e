"""What a Recorder is given: numbers of torch and numpy are Python's; what would spoil a table is refused where it is given."""

import json
import math
import warnings

import numpy as np
import pytest
import torch

from emergence_train.errors import InputError
from emergence_train.recorder import Recorder, arguments, tables
from support import metrics

KINDS = {
    "python": (int, float),
    "numpy": (np.int64, np.float32),
    "numpy arrays": (np.array, np.array),
    "torch": (torch.tensor, torch.tensor),
    "torch with gradient": (lambda n: torch.tensor([n]), lambda n: torch.tensor(n).requires_grad_()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_libraries_are_pythons(tmp_path, kind):
    whole, real = KINDS[kind]
    with Recorder(tmp_path / "mine", params=whole(10), sequence=whole(4), total_tokens=whole(80)) as recorder:
        for step in (1, 2):
            recorder.add(torch.full((1, 4), float(step)))
            recorder.add(np.full((1, 4), float(step)), split="iid")
            recorder.log(whole(step), whole(4 * step), real(0.5), real(0.25), grad_norm=real(2.0), spikes=None)
            recorder.evaluation("skill", "accuracy", real(0.5), stderr=real(0.25), items=whole(8), chance=real(0.0))
            recorder.checkpoint(whole(step), whole(4 * step), real(0.25))
    rows = metrics(tmp_path / "mine")
    expected = [
        {"kind": "train", "step": s, "tokens": 4 * s, "loss": 0.5, "lr": 0.25, "grad_norm": 2.0} for s in (1, 2)
    ]
    assert [{key: row[key] for key in expected[0]} for row in rows] == expected
    frame = tables.read(tables.POSITIONS, tmp_path / "mine")
    assert frame[frame["split"] == "train"].groupby("step")["loss_sum"].first().to_dict() == {1: 1.0, 2: 2.0}
    scores = tables.read(tables.EVALUATIONS, tmp_path / "mine")
    assert scores[["value", "stderr", "items", "chance"]].to_numpy().tolist() == [[0.5, 0.25, 8, 0.0]] * 2


WRONG_ROWS = {
    "step None": (None, 4, 1.0, 0.1),
    "step 1.5": (1.5, 4, 1.0, 0.1),
    "step True": (True, 4, 1.0, 0.1),
    "step -1": (-1, 4, 1.0, 0.1),
    "tokens -1": (1, -1, 1.0, 0.1),
    "tokens nan": (1, math.nan, 1.0, 0.1),
    "tokens beyond int64": (1, 10**400, 1.0, 0.1),
    "loss None": (1, 4, None, 0.1),
    "loss of two": (1, 4, torch.ones(2), 0.1),
    "lr -1": (1, 4, 1.0, -1),
    "lr text": (1, 4, 1.0, "0.1"),
}


@pytest.mark.parametrize("name", WRONG_ROWS)
def test_a_wrong_number_is_refused_by_name(tmp_path, name):
    step, tokens, loss, lr = WRONG_ROWS[name]
    with Recorder(tmp_path / "mine", params=10, sequence=4) as recorder:
        with pytest.raises(InputError, match=rf"log\({name.split()[0]}=.*\): give a "):
            recorder.log(step, tokens, loss, lr)
        if name.split()[0] != "loss":
            recorder.add(torch.ones(1, 4))
            with pytest.raises(InputError, match=rf"checkpoint\({name.split()[0]}=.*\): give a "):
                recorder.checkpoint(step, tokens, lr)
            recorder.checkpoint(1, 4, 0.1)
    assert len((tmp_path / "mine" / "metrics.jsonl").read_text().splitlines()) == (1 if "loss" in name else 3)


WRONG_RESULTS = {
    "value nan": {"value": math.nan},
    "value inf": {"value": math.inf},
    "value text": {"value": "0.5"},
    "stderr inf": {"stderr": math.inf},
    "stderr -1": {"stderr": -1},
    "items -1": {"items": -1},
    "items 10.5": {"items": 10.5},
    "chance inf": {"chance": math.inf},
    "task None": {"task": None},
    "task 5": {"task": 5},
    "task empty": {"task": ""},
    "metric 5": {"metric": 5},
    "higher_is_better yes": {"higher_is_better": "yes"},
    "the same twice": {"task": "first"},
}


@pytest.mark.parametrize("name", WRONG_RESULTS)
def test_a_wrong_result_is_refused_where_it_is_given(tmp_path, name):
    with Recorder(tmp_path / "mine", params=10, sequence=4) as recorder:
        recorder.evaluation("first", "accuracy", 0.25)
        with pytest.raises(InputError, match="evaluation"):
            recorder.evaluation(**{"task": "skill", "metric": "accuracy", "value": 0.5} | WRONG_RESULTS[name])
        for step in (1, 2):
            recorder.add(torch.ones(1, 4), split="iid")
            recorder.checkpoint(step, 4 * step)
    assert tables.read(tables.POSITIONS, tmp_path / "mine")["step"].unique().tolist() == [1, 2]
    assert tables.read(tables.EVALUATIONS, tmp_path / "mine")["value"].tolist() == [0.25]


@pytest.mark.parametrize("split", [5, None, ""])
def test_a_split_is_a_text(tmp_path, split):
    recorder = Recorder(tmp_path / "mine", params=10, sequence=4)
    with recorder, pytest.raises(InputError, match=r"add\(split=.*\): give a text"):
        recorder.add(torch.ones(1, 4), split=split)


@pytest.mark.parametrize(
    "given", [{"params": "10"}, {"sequence": 0}, {"vocabulary": None}, {"run": 5}, {"total_tokens": -1}]
)
def test_a_recorders_arguments_are_checked(tmp_path, given):
    (name,) = given
    with pytest.raises(InputError, match=rf"Recorder\({name}=.*\): give a "):
        Recorder(tmp_path / "mine", **{"params": 10, "sequence": 4} | given)


@pytest.mark.parametrize("name", ["mask_BT", "correct_BT"])
@pytest.mark.parametrize("bad", [[1, 1, 2, 2], [-1, 1, 1, 1], [0.5, 1, 1, 1], [math.nan, 0, 0, 1]])
def test_flags_are_yes_or_no(tmp_path, name, bad):
    """Numbers of documents, of a packed attention mask, would weigh the sums."""
    losses = torch.full((2, 4), 2.0)
    with Recorder(tmp_path / "mine", params=10, sequence=4) as recorder:
        with pytest.raises(InputError, match=f"{name} has .* among its values; give booleans, or 0 and 1: {name}="):
            recorder.add(losses, **{name: torch.tensor([bad, [1, 1, 1, 1]])})
        recorder.add(losses, mask_BT=torch.tensor([[1, 1, 2, 2], [1, 2, 2, 3]]) > 0)
        assert recorder.checkpoint(1, 8) == {"train": 2.0}


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16, np.bool_, np.uint8])
def test_flags_of_any_type_are_the_same(dtype):
    values = [[True, False], [False, True]]
    given = np.array(values, dtype) if isinstance(dtype, type) else torch.tensor(values).to(dtype)
    assert arguments.flags("mask_BT", given, torch.ones(2, 2), "mask > 0").tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_whole_floats_are_whole_numbers(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Recorder(tmp_path / "mine", params=124e6, sequence=4, total_tokens=5e10) as recorder:
            recorder.log(1, 1e6, 3)
    header = json.loads((tmp_path / "mine" / "metrics.jsonl").read_text().splitlines()[0])
    assert (header["params"], header["total_tokens"]) == (124_000_000, 50_000_000_000)
    assert metrics(tmp_path / "mine")[0]["tokens"] == 1_000_000
