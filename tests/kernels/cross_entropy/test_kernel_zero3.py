"""LMHead under DeepSpeed ZeRO-3: the weight exists only while the module that owns it runs."""

import json
import os
import socket
import subprocess
import sys

import pytest
from compiled import HARNESS


@pytest.mark.slow
def test_zero3_trains_as_zero0():
    pytest.importorskip("deepspeed")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    path = os.pathsep.join(p for p in sys.path if p)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [*command, str(HARNESS / "zero3_worker.py")],
        env=environment | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("RESULT ")]
    losses = json.loads(line.removeprefix("RESULT "))
    for tied in ("False", "True"):
        assert losses[f"3 {tied}"] == pytest.approx(losses[f"0 {tied}"], rel=1e-5)
        assert losses[f"3 {tied}"][-1] < losses[f"3 {tied}"][0]
    assert losses["0 True"] != pytest.approx(losses["0 False"], rel=1e-5)
