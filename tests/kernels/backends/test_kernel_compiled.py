"""The compiled kernels beyond what every backend must do: many shapes of rows, thread orders, races, the compiled code.

"cpu" is C++ for CPUs. Without a GPU the CUDA kernels' source runs in csrc/emulator, which reports races,
accesses out of bounds and reads of uninitialised shared memory. On a GPU the same tests run the compiled kernels.
"""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from kernel_checks import assert_as_good

import emergence_kernels as ek
from emergence_kernels.attention import compiled as attention
from emergence_kernels.attention.options import Options, Saved
from emergence_kernels.backends import build, library
from emergence_kernels.backends.dispatch import resolve_backend
from emergence_kernels.backends.library import operations
from emergence_kernels.cross_entropy import compiled as cross_entropy
from emergence_kernels.rms_norm import compiled as rms_norm

EMULATED = not torch.cuda.is_available()


@pytest.fixture
def emulation(cuda_library):
    if not EMULATED:
        pytest.skip("the order of a GPU's threads cannot be set")
    if cuda_library:
        pytest.skip(cuda_library)


def rows_of(R: int, V: int, z_dtype: torch.dtype, dz_dtype: torch.dtype, device, *, in_place: bool = True):
    """Arguments of loss_rows with all difficulties: ignored rows, a confident row, large logits."""
    padded = -(-V // 8) * 8
    z_RS = (torch.randn(R, padded) * 4).to(device, z_dtype)
    z_RS[0, min(3, V - 1)] = 40.0
    valid_R = (torch.arange(R) % 5 != 2).to(device)
    targets_R = torch.randint(V, (R,)).to(device)
    targets_R[0] = min(3, V - 1)
    scale_R = torch.randn(R).to(device)
    view = z_RS if z_dtype == dz_dtype else z_RS.view(dz_dtype)[:, :padded]
    dz_RS = view if in_place else torch.full((R, padded), torch.nan, dtype=dz_dtype, device=device)
    return z_RS, dz_RS, targets_R, valid_R, scale_R


def sweep(backend, z_RS, dz_RS, V, targets_R, valid_R, scale_R, z_loss=0.0, softcap=0.0):
    floats = [torch.full(targets_R.shape, torch.nan, device=z_RS.device) for _ in range(4)]
    correct_R = torch.zeros_like(valid_R)
    loss_R, top_R, log_total_R, entropy_R = floats
    operations(backend).loss_rows(
        z_RS, dz_RS, V, targets_R, valid_R, scale_R, loss_R, top_R, log_total_R, correct_R, entropy_R, z_loss, softcap
    )
    return loss_R, top_R, log_total_R, correct_R, entropy_R


def exact(z_RS, V, targets_R, valid_R, scale_R, z_loss):
    z = z_RS[:, :V].double().clone().requires_grad_()
    lse = torch.logsumexp(z, -1)
    loss = lse - z.gather(1, targets_R[:, None]).squeeze(1)
    keep = valid_R.double()
    (dz,) = torch.autograd.grad(((loss + z_loss * lse.square()) * scale_R.double() * keep).sum(), z)
    p = torch.softmax(z, -1)
    entropy = -(p * torch.log_softmax(z, -1)).sum(-1)
    correct = (z.argmax(-1) == targets_R) & valid_R
    return loss.detach() * keep, lse.detach() * keep, correct, entropy.detach() * keep, dz


# One pack; a part of a block; several packs a thread; more than shared memory keeps (in the emulation 8 KB).
@pytest.mark.parametrize("V", [1, 7, 8, 131, 1000, 4099, 9001])
@pytest.mark.parametrize(
    "types",
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
    ],
    ids=lambda types: "-".join(str(t).removeprefix("torch.") for t in types),
)
def test_rows_against_float64(V, types, compiled, device):
    R = 7
    for in_place in (True, False):
        z, dz, *rows = rows_of(R, V, *types, device, in_place=in_place)
        wanted = exact(z, V, *rows, z_loss=1e-3)
        loss, top, log_total, correct, entropy = sweep(compiled, z, dz, V, *rows, z_loss=1e-3)
        got = loss, top + log_total, correct, entropy, dz[:, :V]
        assert torch.equal(got[2], wanted[2])
        for name, ours, true in zip(
            ("loss", "lse", "entropy"), (got[0], got[1], got[3]), (wanted[0], wanted[1], wanted[3])
        ):
            assert_as_good(name, ours, true, true.float(), floor=8.0, terms=50.0)
        assert_as_good("dz", got[4], wanted[4], wanted[4].to(types[1]), floor=8.0)
        pack = 16 // types[0].itemsize if compiled == "cuda" else 1
        assert (dz[:, V : -(-V // pack) * pack] == 0).all(), "the rest of the last pack is zeroed"


def test_statistics_alone_leave_the_logits(compiled, device):
    z, _, *rows = rows_of(6, 301, torch.float32, torch.float32, device)
    before = z.clone()
    targets, valid, scale = rows
    loss, *_ = sweep(compiled, z, z, 301, targets, valid, None)
    assert torch.equal(z, before)
    assert_as_good("loss", loss, exact(z, 301, *rows, z_loss=0.0)[0], loss.double(), floor=8.0)


@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_gradient_from_known_statistics(softcap, compiled, device):
    dtype = torch.float32 if compiled == "cpu" else torch.bfloat16
    z, dz, targets, valid, scale = rows_of(6, 2500, torch.float32, dtype, device)
    wide = z[:, :2500].double().clone().requires_grad_()
    capped = softcap * torch.tanh(wide / softcap) if softcap else wide
    lse = torch.logsumexp(capped, -1)
    loss = (lse - capped.gather(1, targets[:, None]).squeeze(1)) + 1e-2 * lse.square()
    (wanted,) = torch.autograd.grad((loss * scale.double() * valid).sum(), wide)
    top = capped.detach().amax(-1)
    log_total = lse.detach() - top
    operations(compiled).loss_rows_gradient(
        z, dz, 2500, targets, valid, scale, top.float(), log_total.float(), 1e-2, softcap
    )
    assert_as_good("dz", dz[:, :2500], wanted, wanted.to(dtype), floor=8.0)


def test_target_out_of_range_is_an_infinite_loss(compiled, device):
    """And the target of no column, whatever its low 32 bits."""
    z, dz, targets, valid, scale = rows_of(5, 60, torch.float32, torch.float32, device, in_place=False)
    targets[:] = torch.tensor([5, 60, -3, 1 << 40, (1 << 32) + 3])
    valid[:] = True
    loss, top, log_total, *_ = sweep(compiled, z, dz, 60, targets, valid, scale)
    assert torch.isfinite(loss[0]) and torch.isinf(loss[1:]).all()
    wanted = z[1:, :60].double().softmax(-1) * scale[1:, None]
    assert torch.allclose(dz[1:, :60].double(), wanted, atol=1e-6)
    dz.fill_(torch.nan)
    operations(compiled).loss_rows_gradient(z, dz, 60, targets, valid, scale, top, log_total, 0.0, 0.0)
    assert torch.allclose(dz[1:, :60].double(), wanted, atol=1e-6)


def test_what_does_not_fit_is_refused(cuda_library, device):
    if cuda_library:
        pytest.skip(cuda_library)
    z, dz, targets, valid, scale = rows_of(4, 60, torch.float32, torch.float32, device)
    with pytest.raises(RuntimeError, match="logits and their gradients must be"):
        sweep("cuda", z[:, :58], dz, 60, targets, valid, scale)
    with pytest.raises(RuntimeError, match="logits and their gradients must be"):
        sweep("cuda", z[:, 1:].contiguous()[:, :58], dz, 59, targets, valid, scale)
    with pytest.raises(RuntimeError, match="logits and their gradients must be"):
        sweep("cuda", torch.zeros(4, 66, device=device)[:, :64], dz, 60, targets, valid, scale)
    with pytest.raises(RuntimeError, match="targets must be contiguous"):
        sweep("cuda", z, dz, 60, targets.int(), valid, scale)
    with pytest.raises(RuntimeError, match="float32, bfloat16 or float16"):
        sweep("cuda", z.double(), dz.double(), 60, targets, valid, scale)


def test_position_sums_are_bit_for_bit(compiled, device):
    """In order down the batch, so equal to a loop of double additions."""
    B, T = 5, 77
    loss, entropy = torch.rand(B, T, device=device) * 1e3, torch.rand(B, T, device=device)
    valid, correct = torch.rand(B, T, device=device) < 0.7, torch.rand(B, T, device=device) < 0.3
    got = cross_entropy.position_sums(loss, valid, correct, entropy, backend=compiled)
    wide, total, square = loss.double(), torch.zeros(T, device=device).double(), torch.zeros(T, device=device).double()
    for b in range(B):
        total += wide[b]
        square += wide[b] * wide[b]
    assert torch.equal(got[0], valid.sum(0)) and torch.equal(got[3], correct.sum(0))
    assert torch.equal(got[1], total)
    torch.testing.assert_close(got[2], square, rtol=1e-15, atol=0)  # a GPU fuses the product with the sum
    torch.testing.assert_close(got[4], entropy.double().sum(0), rtol=1e-14, atol=0)


# Features: one warp and several rows a block, several warps, the longest row; singly loaded ones; a start that is not aligned.
@pytest.mark.parametrize("rows, D", [(50, 64), (9, 512), (11, 1032), (3, 8192), (40, 37), (5, 4095)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rms_norm_shapes(rows, D, dtype, compiled, device):
    base = torch.randn(rows * D + 1).to(device, dtype)
    x = base[1:].view(rows, D)  # two or four bytes off
    weight = (1 + torch.randn(D) / 4).to(device, dtype)
    residual, dy, d_residual = (torch.randn(rows, D).to(device, dtype) for _ in range(3))
    y, new_residual, rstd = rms_norm.forward(x, weight, 1e-6, residual, backend=compiled)
    dx, dw = rms_norm.backward(dy, d_residual, new_residual, weight, rstd, backend=compiled)
    results = []
    for kept in (torch.float64, dtype):
        a, b, w = (t.detach().to(kept).requires_grad_() for t in (x, residual, weight))
        total = (x + residual).to(kept) + (a + b - (a + b).detach())  # the rounded sum, as it is stored
        wide = total.double()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
        out = normed.to(kept) * w
        grads = torch.autograd.grad((out, total), (a, w), (dy.to(kept), d_residual.to(kept)))
        results.append([out.detach(), total.detach(), *grads])
    for name, *three in zip(("y", "sum", "dx", "dweight"), (y, new_residual, dx, dw), *results):
        assert_as_good(name, *three, floor=4.0)


def test_rms_norm_of_too_many_features_is_refused(cuda_library, device):
    if cuda_library:
        pytest.skip(cuda_library)
    with pytest.raises(ek.BackendError, match="9000 features are more than 8192"):
        ek.rms_norm(torch.ones(2, 9000, device=device), torch.ones(9000, device=device), backend="cuda")
    with pytest.raises(ek.BackendError, match="5001 features are more than 4096 and no multiple of 4"):
        ek.rms_norm(torch.ones(2, 5001, device=device), torch.ones(5001, device=device), backend="cuda")


# ---- thread orders and races -----------------------------------------------------------------------------------------


def every_kernel() -> list[torch.Tensor]:
    """Each kernel once, on shapes that meet all of its barriers."""
    torch.manual_seed(0)
    z, dz, *rows = rows_of(3, 4099, torch.float32, torch.bfloat16, "cpu")
    out = [*sweep("cuda", z, dz, 4099, *rows), dz.clone()]
    z, dz, targets, valid, scale = rows_of(2, 2100, torch.float32, torch.bfloat16, "cpu")
    torch.ops.emergence_cuda.loss_rows_gradient(
        z, dz, 2100, targets, valid, scale, torch.full((2,), 20.0), torch.zeros(2), 0.0, 0.0
    )
    out.append(dz.clone())
    for rows, D in ((27, 200), (9, 2000), (17, 201)):
        x, dy, weight = torch.randn(rows, D), torch.randn(rows, D), torch.randn(D)
        y, _, rstd = rms_norm.forward(x, weight, 1e-6, None, backend="cuda")
        out += [y, *rms_norm.backward(dy, None, x, weight, rstd, backend="cuda")]
    yes = torch.ones(3, 99, dtype=torch.bool)
    out += cross_entropy.position_sums(torch.rand(3, 99), yes, yes, torch.rand(3, 99), backend="cuda")
    # Tiles enough that both buffers are filled again; the widest heads keep less in registers.
    for D, T, window in ((64, 140, None), (128, 75, 50)):
        q, k, v = (torch.randn(1, T, h, D).bfloat16() for h in (2, 1, 1))
        options = Options(window=window, deterministic=True)
        result, lse = attention.forward(q, k, v, options)
        out += [result, lse, *attention.backward(q, Saved(q, k, v, result, lse), options)]
        _, *of_keys = attention.backward(q, Saved(q, k, v, result, lse), options._replace(deterministic=False))
        out += of_keys  # dq's sums have no order
    return out


@pytest.mark.parametrize("orders", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_the_order_of_threads_does_not_matter(emulation, monkeypatch, orders):
    """Bit for bit the same, whoever runs first."""
    usual = every_kernel()
    for seed in range(1, 1 + orders):
        monkeypatch.setenv("EMERGENCE_EMULATE_SEED", str(seed))
        assert all(torch.equal(a, b) for a, b in zip(usual, every_kernel()))


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_barrier_is_needed(emulation, monkeypatch, every):
    """Each barrier, and each wait for copies, left out in turn: the emulator must see a race, or else it, or the race
    detector, is idle. `every`: else the first and the last."""
    every_kernel()
    read = ctypes.CDLL(os.environ[library.VARIABLES["cuda"]]).emergence_barriers
    read.restype = ctypes.c_char_p
    met = read().decode().splitlines()
    in_source = set()
    for path in (*build.sources("cuda"), *build.headers("cuda")):
        text = path.read_text()
        if "hopper" not in text:  # test_kernel_hopper.py, and the tests of what else waits for mbarriers
            in_source |= set(re.findall(r'\b(?:barrier|barrier_among|wait_for_copies<[^>]+>)\([^"]*"([^"]+)"\)', text))
    assert in_source <= set(met) and len(in_source) >= 4, "the shapes of every_kernel miss a barrier"
    for reason in sorted(in_source) if every else (min(in_source), max(in_source)):
        monkeypatch.setenv("EMERGENCE_EMULATE_DROP", reason)
        with pytest.raises(RuntimeError, match="race in|read before this block wrote it"):
            every_kernel()


# ---- the CPU ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def cpu(cpu_library):
    if cpu_library:
        pytest.skip(cpu_library)


def test_exponentials_on_the_cpu(cpu):
    """Two logits 0 and -x: the other's gradient is exp(-x) / (1 + exp(-x)), to 2 ulp down to 1e-37, then 0 or nearly."""
    x = torch.cat([torch.linspace(0, 87, 5001), torch.tensor([88.0, 200.0, 1e4, torch.inf])])
    z = torch.zeros(len(x), 8)
    z[:, 1] = -x
    rows = torch.zeros(len(x), dtype=torch.int64), torch.ones(len(x), dtype=torch.bool), torch.ones(len(x))
    dz = torch.empty_like(z)
    loss, *_ = sweep("cpu", z, dz, 2, *rows)
    wanted = 1 / (1 + x.double().exp())
    assert ((dz[:, 1].double() - wanted).abs() <= 4e-7 * wanted + 1.7e-38).all()
    assert ((loss.double() - torch.log1p((-x.double()).exp())).abs() <= 1e-7).all()


@pytest.mark.parametrize("rows, fits", [(4, False), (1, True)])
def test_results_whose_rows_overlap_are_refused(cpu, rows, fits):
    """Threads would write the same place; a row by itself has none beside it."""
    operations, x = torch.ops.emergence_cpu, torch.randn(rows, 16)
    at, of_row = (torch.zeros(1, F).expand(rows, F) for F in (16, 8))
    flags = torch.zeros(rows, dtype=torch.int64), torch.ones(rows, dtype=torch.bool), torch.ones(rows)
    counts, sums = torch.zeros(2, rows, dtype=torch.int64), torch.zeros(3, rows, dtype=torch.float64)
    outputs = torch.zeros(rows), torch.zeros(1), counts[0], sums[0], sums[1], counts[1], sums[2]
    heads, angles = torch.randn(1, rows, 2, 8), torch.randn(rows, 4)
    for run in (
        lambda: operations.rotary(heads, angles, angles, torch.zeros(1, 1, 2, 8).expand(heads.shape), 1.0),
        lambda: operations.swiglu(x, of_row),
        lambda: operations.swiglu_backward(torch.ones(rows, 8), x, at),
        lambda: sweep("cpu", x, at, 16, *flags),
        lambda: operations.position_loss(at, 16, flags[0], None, -100, 0.0, True, *outputs),
    ):
        with nullcontext() if fits else pytest.raises(RuntimeError, match="rows overlap"):
            run()


def test_what_is_not_a_number_stays_so(cpu):
    z, _, *rows = rows_of(4, 20, torch.float32, torch.float32, "cpu")
    rows[1][:] = True
    z[1, 5], z[2, 6] = torch.nan, torch.inf
    loss, *_ = sweep("cpu", z, z, 20, *rows)
    assert torch.isnan(loss[1]) and not torch.isfinite(loss[2]) and torch.isfinite(loss[[0, 3]]).all()
    assert torch.isnan(z[1, :20]).any()


def test_the_number_of_threads_does_not_matter(cpu):
    """Bit for bit: the thread that computes a row does not change it, and dweight is summed in blocks of a fixed size."""
    x, dy, weight = torch.randn(1000, 96), torch.randn(1000, 96), torch.randn(96)
    hidden, head, targets = torch.randn(4, 300, 32), torch.randn(501, 32), torch.randint(501, (4, 300))
    results, usual = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y, _, rstd = rms_norm.forward(x, weight, 1e-6, None, backend="cpu")
            out = ek.position_loss(hidden, head, targets, backend="cpu")
            results.append([y, *rms_norm.backward(dy, None, x, weight, rstd, backend="cpu"), *out.positions])
    finally:
        torch.set_num_threads(usual)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


def test_float32_alone_is_taken_on_the_cpu(cpu):
    with pytest.raises(RuntimeError, match="logits must be float32"):
        z, dz, *rows = rows_of(2, 8, torch.float32, torch.float32, "cpu")
        sweep("cpu", z.half(), dz.half(), 8, *rows)


def test_a_build_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(build.BuildError, match="nvcc is not on the path"):
        build.build("cuda", tmp_path / "x.so")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match=r"g\+\+ is not on the path"):
        build.build("emulated", tmp_path / "x.so")
    monkeypatch.delenv("CXX")
    broken = tmp_path / "csrc"
    (broken / "cuda").mkdir(parents=True)
    (broken / "cuda" / "a.cu").write_text("int f( { }\n")
    monkeypatch.setattr(build, "SOURCES", broken)
    if shutil.which("g++"):
        with pytest.raises(build.BuildError, match=r"failed: .*a\.cu:1:.*error"):
            build.build("emulated", tmp_path / "x.so")
    assert not (tmp_path / "x.so").exists()


def test_a_library_that_is_damaged_is_named(tmp_path):
    bad = tmp_path / "bad.so"
    bad.write_bytes(b"not a library")
    code = (
        "import torch, emergence_kernels as ek\n"
        "try: ek.rms_norm(torch.ones(2, 4), torch.ones(4), backend='cuda')\n"
        "except ek.BackendError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {library.VARIABLES["cuda"]: str(bad)},
        capture_output=True,
        text=True,
    )
    assert "cannot be loaded" in done.stdout and "bad.so" in done.stdout, done.stderr


def test_a_library_of_other_source_is_not_used(cpu, monkeypatch):
    """After a pull the library may lack an operation that Python calls."""
    monkeypatch.setattr(library, "_LOADED", {})
    assert library.unsupported_reason("cpu", torch.device("cpu")) is None
    monkeypatch.setattr(library, "_LOADED", {})
    monkeypatch.setattr(build, "fingerprint", lambda kind: "0123456789ab")
    assert "was built from another version of csrc/: build it again" in library.unsupported_reason(
        "cpu", torch.device("cpu")
    )
    x = torch.ones(2, 4)
    assert torch.equal(ek.rms_norm(x, x[0]), ek.rms_norm(x, x[0], backend="torch"))
    monkeypatch.setattr(library, "_LOADED", {})
    monkeypatch.setattr(build, "fingerprint", lambda kind: None)  # no source beside the package: prebuilt
    assert library.unsupported_reason("cpu", torch.device("cpu")) is None


def test_a_driver_that_is_too_old_is_named(monkeypatch):
    """Before the first launch, in one line. A driver of the same CUDA generation will do."""
    device, version = torch.device("cuda"), "sm_80 sm_90a, Cuda compilation tools, release 13.0, V13.0.88"
    monkeypatch.setattr(library, "_library", lambda backend: (version, None))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    for driver, reason in (
        ((12, 4), "update the driver to 580 or later, or rebuild with CUDA 12"),
        ((13, 0), None),
        ((14, 1), None),
        (None, None),
    ):
        monkeypatch.setattr(library, "_driver", lambda driver=driver: driver)
        message = library.unsupported_reason("cuda", device)
        assert message is reason is None or (
            reason in message and "CUDA 13.0" in message and "CUDA 12.4" in message and "\n" not in message
        )
    monkeypatch.setattr(library, "_driver", lambda: (12, 4))
    with pytest.raises(
        ek.BackendError, match="'cuda' cannot run: it is built with CUDA 13.0, and the driver supports CUDA 12.4"
    ):
        resolve_backend("cuda", "rms_norm", device)
    assert resolve_backend("auto", "rms_norm", device, measured=["cuda", "torch"]) == "torch"


def test_warnings_are_errors_where_the_kernels_are_developed(monkeypatch):
    for name in ("CI", build.WERROR_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    assert build.strict() == [] and "--Werror" not in build.FLAGS["cuda"]
    monkeypatch.setenv("CI", "true")
    assert build.strict() == ["--Werror", "all-warnings"]
    monkeypatch.setenv("CI", "false")
    monkeypatch.setenv(build.WERROR_VARIABLE, "1")
    assert build.strict() == ["--Werror", "all-warnings"]


def test_which_gpu_runs_which_code():
    built = ["sm_80", "sm_90a", "sm_100a"]
    assert all(library.runs_on(built, *gpu) for gpu in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0)))
    assert not any(library.runs_on(built, *gpu) for gpu in ((7, 5), (10, 3), (12, 0)))
    assert not library.runs_on(["sm_86"], 8, 0)


def test_an_installation_without_source_names_a_remedy(monkeypatch, tmp_path):
    """The command that builds a library in a checkout ends there with "no source"."""
    remedy = "in a checkout: pip install --no-build-isolation ."
    monkeypatch.setattr(build, "library", lambda kind: tmp_path / f"emergence_{kind}.so")
    monkeypatch.delenv("EMERGENCE_CPU_LIBRARY", raising=False)
    monkeypatch.setattr(library, "_LOADED", {})
    assert library.describe("cpu") == "not available: it is not built (python -m emergence_kernels.backends.build cpu)"
    monkeypatch.setattr(build, "SOURCES", tmp_path / "csrc")
    monkeypatch.setattr(build, "host_compiler", lambda: "g++")
    assert library.describe("cpu") == f"not available: it is not built ({remedy})"
    with pytest.raises(build.BuildError, match=f"this installation has no source; {remedy}"):
        build.build("cpu")
