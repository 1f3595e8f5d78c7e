"""A disk that fails, fills up, is slow or hangs, and a clock that jumps: a run ends with one line, or goes on."""

import json
from pathlib import Path

import pytest

from faults import disk
from support import run_python

pytestmark = pytest.mark.skipif(disk.library() is None, reason="wants Linux and a C compiler")


def check(data_path: Path, place: Path, *arguments: str) -> dict:
    (place / "data").symlink_to(data_path)
    script = Path(__file__).with_name("disk_errors.py")
    done = run_python(str(script), "--place", str(place), *arguments, timeout=580)
    assert done.returncode in (0, 1) and done.stdout, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_disk_that_fails_in_a_save_ends_nothing_badly(data_path, tmp_path):
    """A few of the operations; the slow test has more, `make fault-trials` all."""
    outcome = check(data_path, tmp_path, "--kinds", "ENOSPC from then on", "--first", "100", "--every", "70")
    assert outcome["wrong"] == [] and sum(outcome["outcomes"].values()) >= 2


TABLE = """
import errno, sys
sys.path.insert(0, sys.argv[1])
from faults import disk
disk.ensure()
from pathlib import Path
import pandas as pd
from emergence_train.recorder import tables
columns = {name: [1] for name in tables.POSITIONS.columns} | {"run": "r", "split": "iid"}
place = Path(sys.argv[2])
disk.start(place)
disk.fail(int(sys.argv[3]), errno.ENOSPC, count=disk.FOREVER)
try:
    tables.write(tables.POSITIONS, pd.DataFrame(columns), place / "table.parquet")
except Exception as error:
    print(error)
"""


@pytest.mark.parametrize("operation", range(1, 5))
def test_a_table_that_the_disk_refuses_is_one_line(tmp_path, operation):
    """pyarrow's writer, closed where the disk is full, printed a traceback from its destructor."""
    (tmp_path / "script.py").write_text(TABLE)
    tests, place = Path(__file__).parents[1], tmp_path / "place"
    place.mkdir()
    done = run_python(str(tmp_path / "script.py"), str(tests), str(place), str(operation), fresh=True)
    assert done.stderr == "" and done.stdout.splitlines()[1:] == [], done
    assert "no space left on the disk" in done.stdout, done
    assert list(place.iterdir()) == []


@pytest.mark.slow
def test_every_tenth_operation_fails(data_path, tmp_path):
    outcome = check(data_path, tmp_path, "--every", "23")
    assert outcome["wrong"] == []


@pytest.mark.slow
def test_slow_and_hanging_disks_and_jumping_clocks(data_path, tmp_path):
    outcome = check(data_path, tmp_path, "--others")
    assert set(outcome["slow"]["codes"].values()) == set(outcome["jumping"]["codes"].values()) == {0}
    for mode in ("alone", "beside"):
        hanging = outcome[f"hanging {mode}"]
        assert set(hanging["codes"].values()) == {76} and set(hanging["again"].values()) == {0}, hanging
        assert "its last operation was 'saving'" in hanging["output"] and hanging["seconds"] < 60, hanging
    assert "rank 1 is waited for by 1 others" in outcome["hanging alone"]["output"]
