"""Fixtures for all tests: a small prepared data set of real text, and its configuration.

`make test` has three workers on two cores (pytest-xdist). Each computes on one thread, except for tests that need more; shared
data are made once, under a lock, in a folder of the session.
"""

import contextlib
import gc
import os
from pathlib import Path

gc.disable()  # while modules are imported and tests collected, of which nothing becomes garbage
WORKER = os.environ.get("PYTEST_XDIST_WORKER")
if WORKER:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import pytest  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402

with contextlib.suppress(ImportError):  # a machine with a GPU may be without
    import hypothesis

    hypothesis.settings.register_profile("patient", deadline=None)  # a loaded machine must not fail a test
    hypothesis.settings.load_profile("patient")

from outcomes import PASSED, LeaveOut, Results  # noqa: E402
from support import locked, small_config  # noqa: E402

os.environ.setdefault("WANDB_MODE", "disabled")
if not torch.cuda.is_available() and not os.environ.get("EMERGENCE_TEST_PTX"):
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported, which modules of any folder do


def pytest_addoption(parser) -> None:
    parser.addoption("--results", type=Path, help="a JSON file for each test's outcome; what has passed is left out")
    parser.addoption("--results-since", help="the commit since when a test must have passed (default: the present one)")


def pytest_configure(config) -> None:
    if hasattr(config, "workerinput"):  # a worker; a pytest that a test starts is none, although it inherits WORKER
        config.pluginmanager.register(LeaveOut(config.workerinput.get(PASSED, ())))
    elif path := config.getoption("--results"):
        config.pluginmanager.register(Results(path, config.getoption("--results-since")))


def pytest_collection_modifyitems(items) -> None:
    items.sort(key=lambda item: item.path.name != "test_lint.py")  # the type checker first: last, all would wait for it


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def no_group():
    """Tests that start a process group in this process flush denormals, which hypothesis draws, and set variables by which
    transformers' Trainer would join one."""
    before = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    yield
    torch.set_flush_denormal(False)
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="session")
def common_path(tmp_path_factory) -> Path:
    """A folder shared by all workers of the session."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if WORKER else own


@pytest.fixture(scope="session")
def data_path(common_path) -> Path:
    """A prepared data set that tests read and never change."""
    from emergence_train.data.prepare import prepare
    from emergence_train.data_config import Data

    path = common_path / "data" / "set"
    with locked(common_path / "data.lock"):
        if not (path / "dataset.json").is_file():
            prepare(Data.model_validate(small_config(path, path)["data"]), lambda line: None)
    return path


@pytest.fixture
def config_file(data_path, tmp_path) -> Path:
    """The small configuration as a file, its runs under tmp_path."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(small_config(data_path, tmp_path / "runs")))
    return path
