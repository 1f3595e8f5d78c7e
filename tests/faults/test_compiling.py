"""SIGTERM while torch's own compiler works: in the first step, where nothing is lost, and in validation."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from support import ROOT, command, metrics

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++ here")]


def stopped_after(config_file, cache, moment: str, seconds: float) -> tuple[int, float, str]:
    """Train, and send SIGTERM `seconds` after the output first holds `moment` -> (exit code, seconds to the end, output)."""
    variables = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    variables["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    arguments = [sys.executable, "-m", "emergence_train", "train", str(config_file), "training.compile=true"]
    with open(config_file.with_suffix(".log"), "w+") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT, env=variables)
        try:
            while process.poll() is None and moment not in config_file.with_suffix(".log").read_text():
                time.sleep(0.005)
            time.sleep(seconds)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
        finally:
            process.kill()
        return code, time.monotonic() - began, config_file.with_suffix(".log").read_text()


def test_it_is_answered_within_seconds_and_leaves_no_trace(config_file, tmp_path):
    cache, over = tmp_path / "cache", ["training.compile=true"]
    code, seconds, output = stopped_after(config_file, cache, "epochs:", 1.0)
    assert code == 75 and seconds < 5 and "nothing trained since" in output, output
    code, seconds, output = stopped_after(config_file, cache, "step 4/", 0.7)
    assert code == 75 and seconds < 8 and "saved at step 4" in output and "Traceback" not in output, (seconds, output)
    done = command("train", str(config_file), *over, TORCHINDUCTOR_CACHE_DIR=str(cache))
    assert done.returncode == 0 and "resuming from step 4" in done.stdout, done.stderr
    whole = command("train", str(config_file), *over, "name=whole", TORCHINDUCTOR_CACHE_DIR=str(cache))
    assert whole.returncode == 0, whole.stderr
    losses = [[row["loss"] for row in metrics(tmp_path / "runs" / name)] for name in ("run", "whole")]
    assert losses[0] == losses[1]
