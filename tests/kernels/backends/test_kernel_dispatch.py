"""Choice of the backend, errors where one cannot run, independence of the package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import emergence_kernels as ek
from emergence_kernels.backends.dispatch import dtype_limits, resolve_backend

PACKAGE = Path(ek.__file__).parent
CPU = torch.device("cpu")


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "EMERGENCE_KERNELS_BACKEND")}
    path = os.pathsep.join([str(PACKAGE.parent), clean.get("PYTHONPATH", "")])
    clean |= {"PYTHONPATH": path} | environment
    return subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True)


def test_auto_on_a_cpu_is_never_the_interpreter_or_the_emulation(monkeypatch):
    monkeypatch.setenv("EMERGENCE_CPU_LIBRARY", "nowhere.so")
    for op in ("rms_norm", "rotary", "swiglu", "attention", "linear_cross_entropy", "position_loss"):
        assert resolve_backend(None, op, CPU) == resolve_backend("auto", op, CPU) == "torch"


def test_auto_on_a_cpu_is_the_compiled_library(cpu_library):
    if cpu_library:
        pytest.skip(cpu_library)
    assert resolve_backend(None, "position_loss", CPU, dtype_limits(torch.ones(1))) == "cpu"
    assert resolve_backend(None, "position_loss", CPU, dtype_limits(torch.ones(1).bfloat16())) == "torch"
    assert resolve_backend(None, "attention", CPU) == "cpu"
    assert resolve_backend(None, "fp8_linear", CPU) == "torch"
    with pytest.raises(ek.BackendError, match="'cpu' cannot run: it supports float32 only, not torch.bfloat16"):
        ek.rms_norm(torch.ones(2, 4).bfloat16(), torch.ones(4).bfloat16(), backend="cpu")


def test_auto_on_a_gpu(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr("emergence_kernels.backends.dispatch.HAS_TRITON", True)
    assert resolve_backend("auto", "rms_norm", cuda) == "triton"
    assert resolve_backend("auto", "attention", cuda) == "flash"
    assert resolve_backend("auto", "attention", cuda, {"flash": "no"}) == "triton"
    # Never unmeasured kernels, even if no other can run.
    nothing = {"flash": "no", "triton": "no"}
    monkeypatch.setattr("emergence_kernels.backends.library.unsupported_reason", lambda *_: None)
    assert resolve_backend("cuda", "attention", cuda, nothing) == "cuda"
    assert resolve_backend("auto", "attention", cuda, nothing) == "torch"
    assert resolve_backend("auto", "position_loss", cuda, None, ("triton",)) == "torch"
    assert resolve_backend("triton", "position_loss", cuda, None, ("triton",)) == "triton"
    monkeypatch.setattr("emergence_kernels.backends.dispatch.HAS_TRITON", False)
    assert resolve_backend("auto", "rms_norm", cuda) == "torch"


def test_the_environment_chooses(monkeypatch):
    monkeypatch.setenv("EMERGENCE_KERNELS_BACKEND", "torch")
    assert resolve_backend(None, "rms_norm", torch.device("cuda")) == "torch"
    assert resolve_backend("auto", "fp8_linear", CPU) == "torch"
    monkeypatch.setenv("EMERGENCE_KERNELS_BACKEND", "tritn")
    with pytest.raises(ek.BackendError, match="unknown kernel backend 'tritn'"):
        ek.rms_norm(torch.ones(2, 4), torch.ones(4))


def test_a_named_backend_that_cannot_run_raises():
    x, weight = torch.ones(2, 4), torch.ones(4)
    with pytest.raises(ek.BackendError, match="'flash' cannot run: it has no rms_norm"):
        ek.rms_norm(x, weight, backend="flash")
    output = run(
        "import torch, emergence_kernels as ek\n"
        "try: ek.rms_norm(torch.ones(2, 4), torch.ones(4), backend='cuda')\n"
        "except ek.BackendError as error: print(error)",
        EMERGENCE_CUDA_LIBRARY="nowhere.so",
    )
    assert "'cuda' cannot run: EMERGENCE_CUDA_LIBRARY names no file: nowhere.so" in output.stdout, output.stderr
    with pytest.raises(ek.BackendError, match="'flash' cannot run"):
        ek.attention(*(torch.ones(1, 2, 1, 8, dtype=torch.bfloat16),) * 3, backend="flash")
    with pytest.raises(ek.BackendError, match="float64 is computed by 'torch' only"):
        ek.rms_norm(x.double(), weight.double(), backend="triton")
    output = run(
        "import torch, emergence_kernels as ek\n"
        "try: ek.rms_norm(torch.ones(2, 4), torch.ones(4), backend='triton')\n"
        "except ek.BackendError as error: print(error)"
    )
    assert "CUDA device" in output.stdout or "not installed" in output.stdout, output.stderr


def test_without_triton():
    """Importing, and the torch backend, need torch only."""
    output = run(
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('triton', 'flash_attn', 'emergence_train'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda n, *a: None if n in ('triton', 'flash_attn') else find(n, *a)\n"
        "import torch, emergence_kernels as ek\n"
        "loss = ek.position_loss(torch.ones(1, 2, 4), torch.ones(3, 4), torch.zeros(1, 2, dtype=torch.long)).loss\n"
        "print(round(loss.item(), 4))\n"
        "try: ek.rms_norm(torch.ones(2, 4), torch.ones(4), backend='triton')\n"
        "except ek.BackendError as error: print(error)\n"
        "print('triton' in sys.modules)"
    )
    assert output.returncode == 0, output.stderr
    assert output.stdout.splitlines()[0] == "1.0986" and "triton is not installed" in output.stdout
    assert output.stdout.splitlines()[-1] == "False"


def test_importing_does_not_import_triton():
    output = run("import sys, emergence_kernels; print('triton' in sys.modules)")
    assert output.stdout.strip() == "False", output.stderr


def test_the_framework_is_not_imported():
    for file in PACKAGE.rglob("*.py"):
        assert "emergence_train" not in file.read_text(), file


def test_available_backends():
    table = ek.available_backends("cpu")
    others = {"rms_norm", "rotary", "swiglu", "attention", "feed_forward", "fp8_linear", "adamw_step"}
    assert set(table) == {"linear_cross_entropy", "position_loss", *others}
    assert all(row["torch"] == "yes" for row in table.values())
    assert table["rms_norm"]["flash"] == "it has no rms_norm"
