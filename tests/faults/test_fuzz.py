"""Malformed inputs: each ends in success or in one line (InputError), never in another exception or a half-written file.

FUZZ_EXAMPLES=3000 runs more of them (make fault-trials does).
"""

import json
import os
import shutil

import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from emergence_train import config
from emergence_train.checkpoint.format import complete, problems
from emergence_train.data.dataset import Dataset
from emergence_train.errors import InputError
from emergence_train.faults.anomalies import SkippedBatches
from emergence_train.recorder import tables
from emergence_train.recorder.run_log import RunLog
from support import small_config

FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "120")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
STAMP = "verified.json"  # files verified before
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["1e400", "0x10", "~"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


def one_line(error: InputError) -> None:
    assert str(error) and "\n" not in str(error)


def places(tree, path=()):
    """Every path to a key or an index of a nested tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(tree, path, value):
    copy = json.loads(json.dumps(tree))
    node = copy
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return copy


TREE = small_config("data", "runs")
TREE["faults"], TREE["model"]["preset"] = {"spike": "log"}, "tiny-0.05m"


@FUZZ
@given(data=st.data())
def test_configurations(tmp_path, data):
    """A valid file with one to three values replaced, and overrides of any form."""
    tree = TREE
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(sorted(places(tree), key=str)))
        tree = changed(tree, path, None)
        node = tree
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = data.draw(VALUES)
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    overrides = data.draw(
        st.lists(st.text(max_size=20) | st.sampled_from(["training.lr=1", "data.sources.0.x=2", "a=["]))
    )
    try:
        loaded = config.load(file, overrides)
        assert config.load(file, overrides) == loaded and loaded.to_yaml()
    except InputError as error:
        one_line(error)


@FUZZ
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_configurations_that_are_no_yaml(tmp_path, content):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(InputError) as raised:
        config.load(tmp_path / "c.yaml")
    one_line(raised.value)


def table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "run": "r",
            "params": 7,
            "step": 4,
            "tokens": 64,
            "split": "iid",
            "position": [1, 2, 3],
            "count": 8,
            "loss_sum": [16.0, 12.0, 8.0],
            "loss_sq_sum": [40.0, 30.0, 20.0],
            "correct": [1, 2, 3],
        }
    )


@FUZZ
@given(data=st.data())
def test_tables_with_bytes_changed(tmp_path, data):
    """Parquet truncated, flipped and overwritten; what is still read is a complete valid table."""
    path = tmp_path / "t.parquet"
    tables.write(tables.POSITIONS, table(), path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    path.write_bytes(content)
    try:
        frame = tables.read(tables.POSITIONS, path)
        optional = set(frame.attrs["missing"])  # a byte of its name is another one
        assert optional <= {"correct"} and set(tables.POSITIONS.columns) <= set(frame.columns)
        assert frame.drop(columns=list(optional)).notna().all().all()
    except InputError as error:
        one_line(error)


@FUZZ
@given(data=st.data())
def test_tables_as_csv(tmp_path, data):
    """Cells, header cells and whole rows replaced by anything."""
    lines = [line.split(",") for line in table().to_csv(index=False).splitlines()]
    for _ in range(data.draw(st.integers(1, 4))):
        row = data.draw(st.sampled_from(lines))
        row[data.draw(st.integers(0, len(row) - 1))] = data.draw(
            st.sampled_from(["", "nan", "-1", "1e400", '"', "x", "9" * 30, "1,2", "inf", "\0"]) | st.text(max_size=5)
        )
    text = "\n".join(",".join(row) for row in lines)
    assume("\ud800" not in text)
    (tmp_path / "t.csv").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        tables.read(tables.POSITIONS, tmp_path / "t.csv")
    except InputError as error:
        one_line(error)


@FUZZ
@given(content=st.lists(st.binary(max_size=30) | VALUES.map(lambda v: json.dumps(v).encode()), max_size=5))
def test_metrics_and_rewinds(tmp_path, content):
    header = b'{"kind": "run", "run": "r", "params": 1}\n'
    (tmp_path / "metrics.jsonl").write_bytes(header + b"\n".join(content))
    (tmp_path / "rewinds.json").write_bytes(b"".join(content))
    for read in (lambda: tables.read(tables.CURVES, tmp_path), lambda: SkippedBatches(tmp_path)):
        try:
            read()
        except InputError as error:
            one_line(error)


@pytest.fixture(scope="module")
def copy(data_path, tmp_path_factory):
    root = tmp_path_factory.mktemp("set") / "set"
    shutil.copytree(data_path, root)
    return root


@FUZZ
@given(data=st.data())
def test_prepared_data(copy, data):
    """The index with a value replaced, or any of its files cut or flipped."""
    victim = copy / "dataset.json"
    if not data.draw(st.booleans()):
        victim = data.draw(st.sampled_from(sorted(p for p in copy.rglob("*") if p.is_file() and p.name != STAMP)))
    before = victim.read_bytes()
    content = bytearray(before)
    if victim.name == "dataset.json":
        index = json.loads(before)
        path = data.draw(st.sampled_from(sorted(places(index), key=str)))
        content = json.dumps(changed(index, path, data.draw(VALUES))).encode()
    else:
        place = data.draw(st.integers(0, max(len(content) - 1, 0)))
        if content and data.draw(st.booleans()):
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        else:
            content = content[:place]
    loaded = config.Config.model_validate(small_config(copy, copy)).data
    try:
        victim.write_bytes(content)
        dataset = Dataset(loaded, 3)
        assert len(dataset.sample(11)) == 33 and dataset.segments()
    except InputError as error:
        one_line(error)
    finally:
        victim.write_bytes(before)
        (copy / STAMP).unlink(missing_ok=True)


@FUZZ
@given(data=st.data())
def test_log_on_a_flaky_disk_has_every_row_once(tmp_path_factory, data):
    """Writes that stop anywhere, raise, and work again: after a flush that returns None the file is complete."""
    folder = tmp_path_factory.mktemp("run")
    log = RunLog(folder, {"run": "r", "params": 1, "vocabulary": "v"}, 0, [])
    plain, failing = os.pwrite, {"at": None}

    def pwrite(file, content, offset):
        if failing["at"] is None:
            return plain(file, content, offset)
        plain(file, content[: failing["at"]], offset)
        raise OSError(28, "No space left on device")

    written = 0
    os.pwrite = pwrite
    try:
        for _ in range(data.draw(st.integers(1, 6))):
            failing["at"] = data.draw(st.none() | st.integers(0, 60))
            for _ in range(data.draw(st.integers(0, 3))):
                written += 1
                log.write("train", step=written, loss=1.0)
            error = log.flush()
            assert (error is None) == (failing["at"] is None or not log.pending)
            if error is None:
                rows = tables.read_metrics(folder)
                assert [row["step"] for row in rows[1:]] == list(range(1, written + 1))
    finally:
        os.pwrite = plain
        shutil.rmtree(folder)


def test_what_is_no_checkpoint_at_all(tmp_path):
    for name in ("step-1", "step-00000000001", "step-000000000x", ".step-0000000004.tmp", "damaged-step-0000000004"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    assert complete(tmp_path) == []
    assert problems(tmp_path / "nothing")
