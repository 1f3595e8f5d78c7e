"""Reading metrics.jsonl: lines of training steps together give what a plain loop over them gives."""

import codecs
import json

import numpy as np
import pytest

from emergence_train.errors import InputError
from emergence_train.recorder import tables
from emergence_train.recorder.metrics import FEW, TRAIN_COLUMNS, Metrics, TrainLines, iter_pieces
from emergence_train.recorder.run_log import RunLog

ROWS = 3 * FEW


def line(step: float, **values) -> bytes:
    row = {"kind": "train", "step": step, "tokens": 1024 * step, "loss": 11 / (step + 3), "lr": 1e-4 / 3}
    return json.dumps(row | {"tokens_per_second": 1e5 / 7, "grad_norm": 0.1} | values).encode() + b"\n"


def write(path, lines: list[bytes]):
    path.write_bytes(b'{"kind": "run", "run": "r", "batch": 8, "sequence": 128}\n' + b"".join(lines))
    return path


def plainly(lines: list[bytes]) -> tuple[dict[str, np.ndarray], list[dict]]:
    """Columns and events, with the standard library alone."""
    rows = [json.loads(text) for text in lines]
    train = [row for row in rows if row["kind"] == "train"]
    columns = {name: np.array([row.get(name) for row in train], float) for name in TRAIN_COLUMNS}
    return columns, [row for row in rows if row["kind"] not in ("train", "run")]


ODD = {
    "null": line(70, loss=None),
    "no loss": b'{"kind": "train", "step": 70, "tokens": 1}\n',
    "a bool": line(70, lr=True),
    "not a number": b'{"kind": "train", "step": 70, "tokens": 1, "loss": NaN, "lr": 1, "tokens_per_second": 1}\n',
    "infinite": b'{"kind": "train", "step": 70, "tokens": 1, "loss": -Infinity, "lr": 1, "tokens_per_second": 1}\n',
    "too large": b'{"kind": "train", "step": 70, "tokens": 1, "loss": 1e400, "lr": 1, "tokens_per_second": 1}\n',
    "a long integer": line(70, tokens=2**53 + 1),
    "tiny": line(70, lr=5e-324),
    "other text": line(70, note='é "kind" \\'),
    "nested": line(70, more={"loss": 3.0, "list": [1, 2]}),
    "twice": b'{"kind": "train", "step": 70, "loss": 1.5, "loss": 2.5}\n',
    "another kind": b'{"kind": "train", "step": 70, "kind": "spike"}\n',
    "an event": b'{"kind": "validation", "step": 70, "loss": {"iid": 2.5}}\n',
    "spaces": b'  {"kind": "train", "step": 70, "loss": 1.5}  \r\n',
    "an empty line": b"",
}


@pytest.mark.parametrize("odd", ODD)
def test_metrics_read_is_a_plain_loop(tmp_path, odd):
    rng = np.random.default_rng(0)
    lines = [line(step, loss=float(rng.normal()) * 10.0 ** int(rng.integers(-30, 30))) for step in range(1, ROWS)]
    lines.insert(ROWS // 2, ODD[odd])
    path = write(tmp_path / "metrics.jsonl", lines + ([b"\n"] if odd == "an empty line" else []))
    columns, events = plainly([text for text in lines if text])
    metrics = Metrics.read(path)
    assert metrics.events == events
    for name in TRAIN_COLUMNS:
        assert metrics.train(name).tobytes() == columns[name].tobytes(), name


def test_metrics_read_most_steps_together(tmp_path):
    path = write(tmp_path / "metrics.jsonl", [line(step) for step in range(1, ROWS)])
    pieces = list(iter_pieces(path))
    assert [type(piece) for piece in pieces] == [tuple, TrainLines]
    assert [row for _, row, _ in pieces[1].rows()] == [json.loads(text) for text in pieces[1].lines]


BAD = [
    b'{"kind": "train", "step": "x"}\n',
    b'{"kind": "train", "loss": [1]}\n',
    b'{"kind": "train", "step": 1, "loss": "9"}\n',  # which numpy would take for 9
]


@pytest.mark.parametrize("together", [1, ROWS], ids=["in a few lines", "in many"])
@pytest.mark.parametrize("bad", BAD)
def test_metrics_read_names_a_bad_number(tmp_path, bad, together):
    """By its line in the file: the header's and an event's count, and a blank one."""
    before = [b"\n", ODD["an event"], *(line(step) for step in range(1, together))]
    path = write(tmp_path / "metrics.jsonl", [*before, bad, line(together)])
    with pytest.raises(InputError, match=f"row {len(before) + 2}, column"):
        Metrics.read(path)


STEP_70 = b'{"kind": "train", "step": 70, "tokens": 71680, "lr": 1, "loss": %s}\n'
CURVE = {  # what the analyses refuse of a curve
    "NaN": (STEP_70 % b"NaN", "row 72, column 'loss': nan is empty or NaN"),
    "Infinity": (STEP_70 % b"Infinity", "row 72, column 'loss': inf"),
    "1e400": (STEP_70 % b"1e400", "row 72, column 'loss': inf"),
    "null": (line(70, loss=None), "row 72, column 'loss': nan is empty or NaN"),
    "21.5": (line(21.5), "row 72, column 'step': 21.5 is not a whole number"),
    "doubled": (line(69), "row 71 and .* row 72; keep one of them"),
    "reversed": (line(3), "row 5 and .* row 72; keep one of them"),
}


@pytest.mark.parametrize("case", CURVE)
@pytest.mark.parametrize("event", [0, 1], ids=["together", "one by one"])
def test_a_row_of_a_curve_is_named_by_its_line(tmp_path, case, event):
    """Line 1 is the header, line 2 an event; the steps follow. With a list in an event lines are parsed one by one."""
    text, message = CURVE[case]
    events = [ODD["an event"], b'{"kind": "samples", "step": 0, "texts": []}\n']
    steps = [line(step) for step in range(1, ROWS)]
    path = write(tmp_path / "metrics.jsonl", [events[event], *steps[:69], text, *steps[70:]])
    with pytest.raises(InputError, match=message):
        tables.read(tables.CURVES, path)


@pytest.mark.parametrize("steps", [3, ROWS])
def test_metrics_read_passes_over_a_byte_order_mark(tmp_path, steps):
    path = write(tmp_path / "metrics.jsonl", [line(step) for step in range(1, steps)])
    plain = Metrics.read(path)
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    marked = Metrics.read(path)
    assert marked.header == plain.header and np.array_equal(marked.train("loss"), plain.train("loss"))


def test_another_header_in_the_middle_is_noted(tmp_path):
    """Two that write to one log; the same header again says nothing."""
    steps = [line(step) for step in range(1, ROWS)]
    header = b'{"kind": "run", "run": "r", "batch": 8, "sequence": 128}\n'
    path = write(tmp_path / "metrics.jsonl", [*steps[:70], header, *steps[70:]])
    assert Metrics.read(path).notes == []
    write(path, [*steps[:70], header.replace(b"128", b"64"), *steps[70:]])
    assert tables.read(tables.CURVES, path).attrs["notes"] == [
        f"{path}: row 72 is a header of another sequence: two runs wrote here"
    ]


def test_metrics_read_names_a_bad_line(tmp_path):
    lines = [line(step) for step in range(1, ROWS)]
    path = write(tmp_path / "metrics.jsonl", [*lines, b'{"kind": "train", "step": 1}}\n', *lines])
    with pytest.raises(InputError, match=f"row {ROWS + 1} is not a JSON object"):
        Metrics.read(path)


def test_metrics_read_leaves_out_a_line_cut_off(tmp_path):
    lines = [line(step) for step in range(1, ROWS)]
    path = write(tmp_path / "metrics.jsonl", [*lines, line(ROWS)[:-20]])
    assert len(Metrics.read(path).train("step")) == len(lines)


@pytest.mark.parametrize("step", [1, FEW + 3, ROWS - 1, ROWS + 5])
@pytest.mark.parametrize("rewound", [[], [5], [FEW, ROWS - 2]])
def test_run_log_keeps_the_lines_of_a_plain_loop(tmp_path, step, rewound):
    lines = [line(number) for number in range(1, ROWS)]
    lines.insert(40, b'{"kind": "spike", "step": 41, "reason": "r"}\n')
    header = {"run": "r", "vocabulary": "v"}
    write(tmp_path / "metrics.jsonl", lines)
    log = RunLog(tmp_path, header, step, [{"step": at, "reason": "r"} for at in rewound])
    assert log.close() is None
    expected = [{"kind": "run", **header}]
    waiting = [at for at in rewound]
    for text in lines:
        row = json.loads(text)
        if row["step"] <= step:
            while waiting and row["step"] > waiting[0]:
                expected.append({"kind": "rewind", "step": waiting.pop(0), "reason": "r"})
            expected.append(row)
    expected += [{"kind": "rewind", "step": at, "reason": "r"} for at in waiting]
    written = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    assert [json.loads(text) for text in written] == expected
    assert [text for text in written if b'"train"' in text] == [
        t for t in lines if json.loads(t) in expected and b'"train"' in t
    ]
    assert np.array_equal(
        log.take_read_back().train("step"), [row["step"] for row in expected if row["kind"] == "train"]
    )


def test_the_step_that_stopped_a_run_is_none_of_its_curve(tmp_path):
    events = [b'{"kind": "skipped", "step": 2}\n', b'{"kind": "stop", "step": 3, "reason": "loss not finite"}\n']
    rows = [
        line(1, tokens=1, loss=2.0),
        line(2, tokens=2, loss=None),
        events[0],
        line(3, tokens=3, loss=None),
        events[1],
    ]
    path = write(tmp_path / "metrics.jsonl", rows)
    assert tables.read(tables.CURVES, path)["step"].tolist() == [1]
