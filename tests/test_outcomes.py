"""The record of slow tests: written as they end, and the next run resumes with what is missing."""

import json
import shutil
import subprocess

import pytest

import outcomes

pytest_plugins = ["pytester"]

TESTS = """
import json, pathlib, pytest
def outcomes():
    return {test[-1]: row["outcome"] for test, row in json.loads(pathlib.Path(RECORD).read_text())["tests"].items()}
def test_a():
    assert set(outcomes().values()) == {"not run"}
def test_b():
    assert outcomes() == {"a": "passed", "b": "not run", "c": "not run"}
    raise BEHAVIOUR
def test_c():
    pytest.skip("no GPU")
"""


def outcomes_of(record) -> dict[str, str]:
    return {test[-1]: row["outcome"] for test, row in json.loads(record.read_text())["tests"].items()}


def test_a_killed_run_resumes_with_what_is_missing(pytester, tmp_path, monkeypatch):
    monkeypatch.setattr(outcomes, "commit", lambda: "abc")
    record = tmp_path / "results.json"
    text = TESTS.replace("RECORD", repr(str(record)))
    pytester.makepyfile(test_it=text.replace("BEHAVIOUR", "KeyboardInterrupt"))
    pytester.inline_run(plugins=[outcomes.Results(record)], no_reraise_ctrlc=True)
    assert outcomes_of(record) == {"a": "passed", "b": "not run", "c": "not run"}
    pytester.makepyfile(test_it=text.replace("BEHAVIOUR", "KeyError"))
    again = pytester.inline_run(plugins=[outcomes.Results(record)])
    assert again.countoutcomes() == [0, 1, 1]  # without test_a
    assert outcomes_of(record) == {"a": "passed", "b": "failed", "c": "skipped"}
    data = json.loads(record.read_text())
    assert data["device"] and data["versions"]["torch"] and data["command"]
    assert all(row["commit"] == "abc" and row["seconds"] >= 0 for row in data["tests"].values())


def test_what_passed_on_another_device_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(outcomes, "commit", lambda: "abc")
    record = tmp_path / "results.json"
    first = outcomes.Results(record)
    first.tests["test_a"] = {"outcome": "passed", "seconds": 1.0, "date": "2026-01-01", "commit": "abc"}
    first.write()
    assert outcomes.Results(record).passed == {"test_a"}
    record.write_text(record.read_text().replace(json.dumps(first.where["device"]), '"another"'))
    assert outcomes.Results(record).tests == {}


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_only_code_makes_another_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(outcomes, "ROOT", tmp_path)

    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    git("init")
    write("code.py", "1")
    git("add", "."), git("commit", "-m", "code")
    first = outcomes.commit()
    write("benchmarks/results/tests.json", "{}")
    assert outcomes.commit() == first and not first.endswith("+")
    git("add", "."), git("commit", "-m", "results")
    assert outcomes.commit() == first
    write("code.py", "2")
    assert outcomes.commit() == f"{first}+"
    git("commit", "-a", "-m", "more code")
    second = outcomes.commit()
    assert second != first and not second.endswith("+")
    contains = outcomes._contains.__wrapped__
    assert contains(second, first) and contains(first, first) and not contains(first, second)
    assert not contains(f"{second}+", first) and not contains(None, first) and not contains("0123456789ab", first)
