"""What every stored result has: the command that made it, the device, and a commit of this history."""

import json
import re
import subprocess
from collections.abc import Iterator

import pytest

from support import ROOT, STUDIES, study

RESULTS = ROOT / "benchmarks" / "results"
FIELDS = ("command", "device", "commit")
H100 = "nvidia-h100-80gb-hbm3/"
# From before these were held: results without some fields, and commits that rebases have left out of the history
LACKING = {
    ("cpu/disk-errors", *FIELDS),
    ("cpu/start", "command"),
    ("temporal_prior", *FIELDS),
    ("story/trained_on", "command"),
    (f"{H100}20261126-fp8-losses", "commit"),
    (f"{H100}20261126-hopper-attention", "command"),
    (f"{H100}20261127-feed-forward-forms", "commit"),
    *((f"temporal_{name}", "device") for name in ("coverage", "laboratories", "longer", "public", "small")),
    *((f"temporal_runs_{name}", "device") for name in ("small", "tiny-cpu")),
    *((name, "device") for name in ("explanation_shares", "memorised_share_coverage", "plan_published", "truth")),
}
LEFT_OUT = {
    ("cpu/crash-states", "21fa07c49138+"),
    ("cpu/heartbeats", "1b9dc1605368+"),
    ("cpu/long_run", "5986bfe6f60c"),
    ("cpu/start", "2a705a6f8d4f"),
    ("emergence_thresholds", "5ec7858231818040d5c5d3c4363a9623d2afc408"),  # of its public tables
    (f"{H100}20261126-105412-fp8_linear-short-bfloat16", "6a8b928"),
    *((f"{H100}20261126-{name}-training-1.2b", "6a8b928") for name in ("105439", "105537")),
    (f"{H100}20261126-105708-training-468m", "6a8b928"),
    *((f"{H100}20261126-{name}-attention-short-bfloat16", "6a8b928") for name in ("105800", "105914")),
    (f"{H100}20261126-105849-position_loss-short-bfloat16", "6a8b928"),
}


@pytest.fixture(scope="module")
def results() -> dict[str, list[tuple[str, object]]]:
    """Every key and value of each result, at any depth."""
    paths = sorted(RESULTS.rglob("*.json"))
    return {
        path.relative_to(RESULTS).with_suffix("").as_posix(): [*fields(json.loads(path.read_text()))] for path in paths
    }


def fields(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from fields(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from fields(inner, key)
    else:
        yield key, value


def git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    return "" if done.returncode else done.stdout


def test_results_name_commits_of_this_history(results):
    """Rebase before a study runs, not after it: the commit that a result names is then there for its reader."""
    if git("rev-parse", "--show-toplevel", "--is-shallow-repository").split() != [str(ROOT), "false"]:
        pytest.skip("no whole history here")
    history = "\n" + git("rev-list", "HEAD")
    named = {
        (name, value)
        for name, result in results.items()
        if name != "tests-slow"  # a test whose commit is gone is run again (tests/outcomes.py)
        for key, value in result
        if "commit" in key and isinstance(value, str) and re.fullmatch(r"[0-9a-f]{7,40}(\+|-dirty)?", value)
    }
    assert len(named) > 100
    missing = {(name, commit) for name, commit in named if "\n" + re.split(r"\+|-", commit)[0] not in history}
    assert missing <= LEFT_OUT


def test_results_name_command_device_and_commit(results):
    missing = set()
    for name, result in results.items():
        filled = {key.rstrip("s") for key, value in result if value}
        absent = [field for field in FIELDS if field not in filled]
        if absent:
            missing.add((name, *absent))
    assert missing <= LACKING


def test_a_study_writes_versions_device_and_commit(tmp_path):
    """The commit is that of the recorder, which marks a changed tree; NaN is refused and leaves what was there."""
    commands = study("commands")
    path = tmp_path / "result.json"
    commands.write_result(path, "python a_study.py", {"value": 1.5})
    written = json.loads(path.read_text())
    assert written.pop("value") == 1.5 and written == {"command": "python a_study.py"} | commands.ENVIRONMENT
    assert written["device"] and {"scipy", "pandas", "torch"} <= set(written["versions"])
    with pytest.raises(ValueError, match="JSON"):
        commands.write_result(path, "python a_study.py", {"value": float("nan")})
    assert json.loads(path.read_text())["value"] == 1.5


@pytest.mark.parametrize("script", sorted(STUDIES.glob("*.py")), ids=lambda path: path.stem)
def test_studies_write_results_whole(script):
    """Through emergence_train.files; a dictionary of versions of one's own is none of the recorder's."""
    text = script.read_text(encoding="utf-8")
    assert not re.search(r"write_text\(\s*json\.dumps\([^\n]*indent", text) and "rev-parse" not in text


def test_the_recorder_marks_a_tree_that_was_changed(tmp_path, monkeypatch):
    """A file changed since its commit: a + behind the hash; outside a checkout: no commit."""
    from emergence_train.recorder import environment

    module = tmp_path / "tree" / "package" / "recorder" / "environment.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    monkeypatch.setattr(environment, "__file__", str(module))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert environment._commit() is None
    tree = ["git", "-C", str(tmp_path / "tree"), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*tree, *words], check=True)
    head = subprocess.run([*tree, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert environment._commit() == head
    module.write_text("x = 1\n")
    assert environment._commit() == head + "+"
