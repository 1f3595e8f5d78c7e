"""The staged entry for a GPU: each stage in its own process, killed at its limit, the rest reported and resumed."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_check  # noqa: E402
import gpu_first  # noqa: E402

from emergence_kernels.backends import library  # noqa: E402
from support import until  # noqa: E402


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    """An H100 and a list of stages that are Python one-liners, "slow" of a small share; -> the record's path."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100")
    monkeypatch.setattr("emergence_kernels.bench.results.commit", lambda: "abc")
    monkeypatch.setattr(gpu_first, "SHORTEST", 0.5)

    def use(**code: str) -> Path:
        stages = [
            gpu_first.Stage(n, 0.02 if n == "slow" else 0.5, (sys.executable, "-c", c), "") for n, c in code.items()
        ]
        monkeypatch.setattr(gpu_first, "stages", lambda *_: stages)
        return tmp_path / "nvidia-h100" / "gpu-first.json"

    return use


def call(tmp_path, minutes: float, *more: str) -> int:
    return gpu_first.main(["--minutes", str(minutes), "--out", str(tmp_path), *more])


def wait_for_the_end_of(pids: list[str]) -> None:
    def ended(state: Path) -> bool:  # or dead, of a parent that is dead
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"

    for pid in pids:
        until(lambda state=Path(f"/proc/{pid}/stat"): ended(state), 10)


def test_stages_end_separately_and_the_next_call_continues(pretended, tmp_path, capsys):
    path = pretended(good="print('fine')", bad="raise SystemExit(3)", slow="import time; time.sleep(60)")
    assert call(tmp_path, 1) == 1
    stages = json.loads(path.read_text())["stages"]
    assert {name: stage["status"] for name, stage in stages.items()} == dict(good=0, bad=3, slow="cut off")
    assert "for the next call: bad, slow" in capsys.readouterr().out
    assert (path.parent / "gpu-first-good.log").read_text() == "fine\n"
    path = pretended(good="raise SystemExit(9)", bad="pass", slow="pass")
    assert call(tmp_path, 20) == 0, "what was done is not done again"
    assert {name: stage["status"] for name, stage in json.loads(path.read_text())["stages"].items()} == dict(
        good=0, bad=0, slow=0
    )
    assert "done before" in capsys.readouterr().out


def test_the_status_is_that_of_the_stages_asked_for(pretended, tmp_path):
    pretended(good="pass", bad="raise SystemExit(3)")
    assert [call(tmp_path, 1, "--stages", name) for name in ("bad", "good")] == [1, 0]


def test_a_stage_that_fails_at_its_limit_gets_twice_the_time(pretended, tmp_path, monkeypatch):
    """As checks with a failed test whose time was up; one that fails at once needs no more."""
    path = pretended(late="", early="")
    ends = {"late": lambda limit: limit - gpu_first.MARGIN, "early": lambda limit: 1.0}
    monkeypatch.setattr(gpu_first, "run", lambda stage, limit, log: (log.write_text("") or 1, ends[stage.name](limit)))
    limits = []
    for _ in range(2):
        assert call(tmp_path, 10) == 1
        limits.append({name: stage["limit"] for name, stage in json.loads(path.read_text())["stages"].items()})
    assert limits == [{"late": 300, "early": 300}, {"late": 600, "early": 300}]


def test_a_stage_that_is_cut_off_leaves_no_process(pretended, tmp_path):
    """Those in sessions of their own too, as gpu_check's pytest: they would hold the GPU in the stages that follow."""
    child = "import time; time.sleep(60)"
    start = f"subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)"
    orphan = "subprocess.run(['sh', '-c', 'sleep 60 & echo $!'])"  # its parent has ended
    path = pretended(slow=f"import subprocess, sys; print({start}.pid, flush=True); {orphan}; {child}")
    assert call(tmp_path, 3) == 1
    pids = (path.parent / "gpu-first-slow.log").read_text().split()
    assert len(pids) == 2
    wait_for_the_end_of(pids)


def test_ending_the_call_ends_its_stage(tmp_path):
    """As `timeout` does. The interpreter of the stages is a script that sleeps."""
    sleeper, pid = tmp_path / "sleeper", tmp_path / "pid"
    sleeper.write_text(f"#!/bin/sh\necho $$ > {pid}.new; mv {pid}.new {pid}; sleep 60\n")
    sleeper.chmod(0o755)
    code = "import runpy, sys, torch; torch.cuda.is_available = lambda: True; sys.executable = sys.argv.pop(1); "
    code += (
        "torch.cuda.get_device_name = lambda *_: 'NVIDIA H100'; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    )
    script = str(ROOT / "benchmarks" / "gpu_first.py")
    process = subprocess.Popen([sys.executable, "-c", code, str(sleeper), script, "--out", str(tmp_path)])
    until(lambda: pid.exists() or process.poll() is not None)
    assert process.poll() is None
    process.terminate()
    assert process.wait(30) == 143
    wait_for_the_end_of([pid.read_text().strip()])


def test_what_a_stage_did_not_reach_is_for_the_next_call(pretended, tmp_path, capsys, monkeypatch):
    """A benchmark cut short by its budget resumes with its next shape, once in the same call; then it is done."""
    for variable in library.VARIABLES.values():  # a library that is built meanwhile would be another one
        monkeypatch.setenv(variable, str(tmp_path / "none.so"))
    bench = [sys.executable, "-m", "emergence_kernels.bench", "--device", "cpu", "--suite", "tiny", "--op", "rms_norm"]
    bench += ["--only", "torch eager", "--out", str(tmp_path / "rows"), "--budget"]
    pretended()
    seen = []

    def stages(out, began=""):
        seen.append(began)
        return [gpu_first.Stage("rms_norm", 1.0, (*bench, "0", "--since", began), "")]

    gpu_first.stages = stages  # undone by the fixture
    assert call(tmp_path, 2) == 0
    out = capsys.readouterr().out
    assert "not reached: rms_norm rows=32 features=48 residual=False" in out and "cut off" in out and "done" in out
    shapes = [json.loads(path.read_text())["finished"] for path in sorted((tmp_path / "rows").rglob("*.json"))]
    assert [[each["shape"]["residual"] for each in of] for of in shapes] == [[True], [False]]
    assert len(set(filter(None, seen))) == 1


def test_what_a_stage_left_out_is_shown(pretended, tmp_path, capsys):
    path = pretended(
        good="print('left out: the CUDA kernels: no nvcc'); print('bench: quack failed: no'); print('a row'); "
        "print('FAILED a::b: 3 != 4')"
    )
    assert call(tmp_path, 1) == 0
    out = capsys.readouterr().out
    assert "left out: the CUDA kernels: no nvcc" in out and "bench: quack failed: no" in out and "a row" not in out
    assert len(json.loads(path.read_text())["stages"]["good"]["reported"]) == 3


def test_the_checks_that_are_cut_off_are_not_failures(monkeypatch, tmp_path, capsys):
    """A limit that is reached is status 75, not that of a failure; and torch's import counts."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(gpu_check, "BEGAN", time.monotonic() - 20)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    limits = []
    (tmp_path / "nvidia-h100").mkdir()
    for status, wanted in ((None, 75), (0, 0), (1, 1), (3, 1)):
        monkeypatch.setattr(gpu_check, "check", lambda *given, status=status: limits.append(given[-1]) or (status, ""))
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--stage", "first", "--limit", "100", "--out", str(tmp_path)])
        assert gpu_check.main() == wanted, status
    assert os.environ["TRITON_INTERPRET"] == "1", "the tests that follow in this process need it"
    assert all(0 < limit <= 80 for limit in limits)


def test_the_checks_have_an_environment_of_their_own(monkeypatch, tmp_path):
    """Without what would have them run something else; the caller's stays."""
    for name in gpu_check.OTHERWISE:
        monkeypatch.setenv(name, "1")
    before, seen = dict(os.environ), {}

    def start(*_, env, **__):
        seen.update(env)
        raise InterruptedError

    monkeypatch.setattr(gpu_check.subprocess, "Popen", start)
    with pytest.raises(InterruptedError):
        gpu_check.check([], tmp_path / "outcomes", [], 1.0)
    assert not seen.keys() & set(gpu_check.OTHERWISE) and os.environ == before
    assert seen["PATH"] == before["PATH"]


def test_stages_that_were_cut_off_come_after_the_others(pretended, tmp_path, capsys):
    """Once more in the same call where there is time, and not before what no call has reached."""
    path = pretended(slow="import time; time.sleep(60)", good="pass")
    assert call(tmp_path, 1) == 1
    assert json.loads(path.read_text())["stages"]["slow"]["cuts"] == 2
    capsys.readouterr()
    pretended(slow="pass", new="pass", good="raise SystemExit(9)")
    assert call(tmp_path, 1) == 0
    lines = capsys.readouterr().out.split()
    assert lines.index("new") < lines.index("slow")


def test_a_program_that_is_absent_fails_its_stage_alone(pretended, tmp_path, capsys):
    path = pretended(good="pass")
    absent = gpu_first.Stage("absent", 0.5, ("no-such-program", "x"), "")
    (good,) = gpu_first.stages()
    gpu_first.stages = lambda *_: [absent, good]  # undone by the fixture
    assert call(tmp_path, 1) == 1
    stages = json.loads(path.read_text())["stages"]
    assert {name: stage["status"] for name, stage in stages.items()} == dict(absent=127, good=0)
    assert "no-such-program failed: No such file or directory" in capsys.readouterr().out


def test_a_test_file_that_cannot_be_imported_is_a_failure(monkeypatch, tmp_path, capsys):
    """Named with its cause, also where the others pass or the limit comes first; the folder need not be there."""
    good, bad = tmp_path / "test_good.py", tmp_path / "test_bad.py"
    good.write_text("def test_good(): pass\n")
    bad.write_text("import no_such_module\n\ndef test_bad(): pass\n")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(gpu_check, "BEGAN", time.monotonic())
    monkeypatch.setattr(gpu_check, "stages", lambda: {"first": [good, bad]})
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(tmp_path / "new"), "--rootdir", str(tmp_path)])
    assert gpu_check.main() == 1
    out = capsys.readouterr().out
    assert "'passed': 1" in out and out.count("FAILED ") == 1 and "No module named 'no_such_module'" in out
    (record,) = (tmp_path / "new").rglob("*-check.json")
    (failure,) = json.loads(record.read_text())["stages"][0]["failures"]
    assert failure["test"] == "test_bad.py"
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--limit", "1", "--out", str(tmp_path / "newer")])
    assert gpu_check.main() == 75 and list((tmp_path / "newer").rglob("*-check.json"))


def test_a_copy_without_git_starts_over(pretended, tmp_path, monkeypatch):
    """Nothing says that its code is the same."""
    path = pretended(only="pass")
    monkeypatch.setattr("emergence_kernels.bench.results.commit", lambda: None)
    assert call(tmp_path, 1) == 0
    pretended(only="raise SystemExit(4)")
    assert call(tmp_path, 1) == 1 and json.loads(path.read_text())["stages"]["only"]["status"] == 4


def test_another_commit_starts_over(pretended, tmp_path, monkeypatch):
    path = pretended(only="pass")
    assert call(tmp_path, 1) == 0
    monkeypatch.setattr("emergence_kernels.bench.results.commit", lambda: "def")
    pretended(only="raise SystemExit(4)")
    assert call(tmp_path, 1) == 1 and json.loads(path.read_text())["stages"]["only"]["status"] == 4


def test_every_stage_is_a_command_that_exists(tmp_path, capsys):
    assert gpu_first.main(["--list"]) == 0
    assert sum(stage.share for stage in gpu_first.stages(tmp_path)) == pytest.approx(1.0)
    for stage in gpu_first.stages(tmp_path):
        assert sys.executable in " ".join(stage.command), "the interpreter of the call, not another's"
        script = next((Path(part) for part in stage.command if part.endswith(".py")), None)
        assert script is None or script.is_file()
    assert "train-468m" in capsys.readouterr().out


def test_without_a_gpu_it_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert call(tmp_path, 1) == 2 and "no CUDA device" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
@pytest.mark.parametrize("target", ["gpu-check", "gpu-sanitize", "gpu-bench", "gpu-first"])
def test_a_python_without_torch_is_named(target):
    """In one line, before anything is built: -S leaves the installed packages out."""
    python = f"{sys.executable} -IS"
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # not one of `make test`
    command = ["make", "--silent", target, f"PYTHON={python}"]
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True)
    line, *rest = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith(f"{python} cannot import torch") and "PYTHON=" in line
    assert not done.stdout and all(text.startswith("make: ***") for text in rest)


@pytest.mark.skipif(not shutil.which("make") or torch.cuda.is_available(), reason="no make, or a GPU")
def test_nothing_is_built_without_a_gpu():
    command = ["make", "--silent", "gpu-check", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("PyTorch sees no CUDA device here")


def test_checking_asks_for_torch_first():
    done = subprocess.run([sys.executable, "-IS", "benchmarks/gpu_check.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("gpu-check: torch is not installed")
