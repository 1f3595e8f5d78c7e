""" "auto" on a GPU follows measurements, and never chooses an unmeasured backend."""

import json
import math
import random
from fractions import Fraction

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from emergence_kernels.attention import flash
from emergence_kernels.attention.op import as_plan, checked
from emergence_kernels.attention.options import Options
from emergence_kernels.backends import ranking
from emergence_kernels.backends.dispatch import resolve_backend
from emergence_kernels.backends.tracing import constant_while_tracing
from emergence_kernels.bench import draw
from support import ROOT

GPU = torch.device("cuda")


def row(candidate: str, ms: float, tokens: int = 8192, features: int = 1024, op: str = "rms_norm", **more) -> dict:
    shape = {"tokens": tokens, "features": features} | more
    return {"op": op, "candidate": candidate, "shape": shape, "modes": {"both": {"median_ms": ms}}}


def run(
    *rows: dict, utc: str = "20260101-000000", architecture: str | None = "sm_90", device: str = "nvidia-h100"
) -> dict:
    header = {"utc": utc, "device": device, "architecture": architecture, "dtype": "bfloat16", "commit": "abc"}
    return header | {"rows": list(rows)}


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Install the table of given runs, on a pretended H100 with everything built."""

    def use(*runs: dict) -> None:
        monkeypatch.setattr(ranking, "FILE", tmp_path / "ranking.json")
        ranking.write(ranking.from_results(list(runs)))
        ranking._table.cache_clear()

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA H100")
    monkeypatch.setattr("emergence_kernels.backends.dispatch.unsupported_reason", lambda *_: None)
    yield use
    ranking._table.cache_clear()


def auto(measured_as: str, *widths: int, dtype: torch.dtype = torch.bfloat16, op: str | None = None) -> str:
    return resolve_backend("auto", op or measured_as, GPU, measured=ranking.fastest(measured_as, GPU, dtype, widths))


def test_without_a_measurement_cuda_is_never_chosen(measured):
    measured()
    for op in ("rms_norm", "position_loss", "linear_cross_entropy"):
        assert auto(op, 4096, 50304) == "triton"


def test_attention_is_ranked_by_its_mask(measured):
    def of(candidate: str, ms: float, kind: str) -> dict:
        return row(candidate, ms, op="attention", features=0, head_dim=64, seq=2048, kind=kind)

    measured(
        run(
            of("emergence flash", 1.0, "causal"),
            of("emergence cuda", 2.0, "causal"),
            of("emergence triton", 3.0, "documents"),
            of("emergence cuda", 2.0, "documents"),
        )
    )
    assert auto("attention, causal", 64, 1024, op="attention") == "flash"
    assert auto("attention, documents", 128, 4096, op="attention") == "cuda"


def chosen(kind: str, head_dim: int = 64, dtype: torch.dtype = torch.bfloat16, length: int = 1024) -> str:
    """The choice of attention's dispatch on a pretended GPU with flash attention, without documents and window."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        q = torch.empty(2, length, 4, head_dim, dtype=dtype, device="cuda")
        ids = torch.empty(2, length, dtype=torch.int64, device="cuda") if kind == "documents" else None
        options = Options(kind != "full", None, ids, 100 if kind == "window" else None, False)
        return checked("attention", q, q, q, options, as_plan(ids), None)[1]


@pytest.fixture
def limited(monkeypatch):
    """Only what the inputs themselves rule out is ruled out."""
    monkeypatch.setattr(
        "emergence_kernels.backends.dispatch.unsupported_reason",
        lambda backend, op, device, limits: limits.get(backend),
    )
    monkeypatch.setattr(flash, "generation", lambda q: None)


def test_an_unmeasured_mask_takes_the_causal_order(measured, limited):
    def of(candidate: str, ms: float, kind: str = "causal", head_dim: int = 64) -> dict:
        return row(candidate, ms, op="attention", features=0, head_dim=head_dim, seq=1024, kind=kind)

    measured(
        run(
            of("emergence flash", 1.0),
            of("emergence cuda", 2.0),
            of("emergence triton", 3.0),
            of("emergence flash", 2.0, head_dim=128),
            of("emergence cuda", 3.0, head_dim=128),
            of("emergence triton", 1.0, head_dim=128),
            of("emergence cuda", 2.0, "window", 128),
            of("emergence triton", 3.0, "window", 128),
        )
    )
    assert chosen("causal") == chosen("full") == "flash"
    assert chosen("documents") == "cuda", "flash attention drops out, the rest keep their order"
    assert chosen("documents", 128) == "triton"
    assert chosen("window") == chosen("window", 128) == "cuda", "this mask was measured"


def test_hopper_has_its_own_kernels_unmeasured(measured, limited, monkeypatch):
    measured()
    assert chosen("causal", dtype=torch.float16) == "cuda" and chosen("causal", length=8192) == "flash"
    assert chosen("documents") == chosen("window", 128) == "cuda"
    assert chosen("documents", 96) == "triton", "Hopper's kernels have no such head dim"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    assert chosen("documents") == "triton"


def test_the_nearest_widths_decide(measured):
    measured(
        run(
            row("emergence cuda", 1.0),
            row("emergence triton", 2.0),
            row("torch eager", 0.1),
            row("emergence cuda", 9.0, features=8192),
            row("emergence triton", 5.0, features=8192),
            row("emergence triton, wide", 0.5, features=8192),
        )
    )
    assert auto("rms_norm", 1000) == auto("rms_norm", 64) == "cuda"
    assert auto("rms_norm", 8192) == auto("rms_norm", 5000) == "triton"
    assert auto("rms_norm", 1024, dtype=torch.float16) == "triton", "another dtype was not measured"
    assert auto("position_loss", 1024, 50304) == "triton", "another operation was not measured"


def _nearest(table: list, widths: tuple[int, ...]) -> list[str]:
    """By the definition, the least sum of logarithmic distances: exactly, the least product of ratios; the first of equals."""
    return min(
        table, key=lambda entry: math.prod(max(Fraction(a, b), Fraction(b, a)) for a, b in zip(entry[0], widths))
    )[1]


def test_near_is_by_the_ratios_of_widths(monkeypatch):
    chance = random.Random(0)
    for _ in range(300):
        table = [([chance.randint(1, 300), chance.randint(1, 300)], [name]) for name in "abcde"]
        monkeypatch.setattr(ranking, "_measured", lambda *_, table=table: table)
        widths = chance.randint(1, 300), chance.randint(1, 300)
        assert ranking.fastest("attention", GPU, torch.bfloat16, widths) == _nearest(table, widths)
    assert ranking.fastest("attention", GPU, torch.bfloat16, (64, 0)), "no position: any entry"


@pytest.mark.parametrize("dynamic", [None, True])
def test_graphs_choose_by_the_length_they_run_at(monkeypatch, dynamic):
    """A graph holds for the lengths nearest to an entry, not for one length; their choices are those of eager mode."""
    table = [([64, 32], ["cuda"]), ([64, 128], ["flash"]), ([128, 64], ["triton"])]
    monkeypatch.setattr(ranking, "_measured", constant_while_tracing(lambda *_: table))
    torch._dynamo.reset()
    counter = CompileCounter()

    def choice(x):
        names = ranking.fastest("attention", GPU, torch.bfloat16, (x.shape[1], x.shape[0]))
        return x.sum() * 0 + ["cuda", "flash", "triton"].index(names[0])

    compiled = torch.compile(choice, fullgraph=True, dynamic=dynamic, backend=counter)
    lengths = list(range(20, 200, 7))
    choices = [("cuda", "flash", "triton")[int(compiled(torch.zeros(T, 64)))] for T in lengths]
    torch._dynamo.reset()
    assert choices == [_nearest(table, (64, T))[0] for T in lengths] and len(set(choices)) == 2
    assert counter.frame_count <= 1 + len(table)


def test_several_numbers_of_tokens_count_alike(measured):
    """A factor of 3 behind on one and of 2 ahead on another is behind."""
    measured(
        run(
            row("emergence cuda", 1.0),
            row("emergence triton", 2.0),
            row("emergence cuda", 30.0, tokens=1 << 16),
            row("emergence triton", 10.0, tokens=1 << 16),
            row("emergence torch", 0.001, tokens=1 << 16),  # failed on the other: not compared
        )
    )
    assert ranking.fastest("rms_norm", GPU, torch.bfloat16, (1024,)) == ["triton", "cuda"]


def test_a_later_run_replaces_an_earlier_one(measured):
    old = run(row("emergence cuda", 1.0), row("emergence triton", 2.0))
    new = run(row("emergence cuda", 3.0), row("emergence triton", 2.0), utc="20260202-000000")
    measured(new, old)
    assert auto("rms_norm", 1024) == "triton"


def test_a_later_run_without_a_backend_replaces_nothing(measured):
    """As of `bench --only`: where the backend that it left out stands is known from the earlier run only."""
    earlier = run(row("emergence triton", 1.0), row("emergence cuda", 0.5))
    chosen = [row("emergence triton", 1.0, features=features) for features in (1024, 2048)]
    measured(earlier, run(*chosen, utc="20260102-000000") | {"command": "bench --only triton"})
    assert auto("rms_norm", 1024) == auto("rms_norm", 2048) == "cuda"


def test_a_device_takes_its_own_measurements_first(measured, monkeypatch):
    """An H200 has an H100's architecture and faster memory: later, nearer or not, its runs say nothing where the H100's do."""
    here = run(row("emergence cuda", 1.0), row("emergence triton", 2.0))
    other = run(
        row("emergence cuda", 2.0, features=4096),
        row("emergence triton", 1.0, features=4096),
        utc="20260202-000000",
        device="nvidia-h200",
    )
    measured(here, other)
    assert auto("rms_norm", 1024) == auto("rms_norm", 4096) == "cuda"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA H200")
    assert auto("rms_norm", 1024) == auto("rms_norm", 4096) == "triton"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA GH200 480GB")
    assert auto("rms_norm", 1024) == "cuda" and auto("rms_norm", 4096) == "triton", (
        "never measured: the nearest widths of any"
    )


def test_runs_on_a_cpu_or_another_architecture_are_ignored(measured):
    rows = row("emergence cuda", 1.0), row("emergence triton", 2.0)
    measured(run(*rows, architecture=None), run(*rows, architecture="sm_80"))
    assert auto("rms_norm", 1024) == "triton"
    assert ranking.fastest("rms_norm", torch.device("cpu"), torch.bfloat16, (1024,)) == []


def test_what_cannot_run_is_passed_over(measured, monkeypatch):
    measured(run(row("emergence cuda", 1.0), row("emergence triton", 2.0)))
    monkeypatch.setattr(
        "emergence_kernels.backends.dispatch.unsupported_reason",
        lambda backend, *_: "it is not built" if backend == "cuda" else None,
    )
    assert auto("rms_norm", 1024) == "triton"


def test_one_command_writes_the_table(measured, tmp_path, capsys):
    measured()
    results = tmp_path / "results"
    results.mkdir()
    (results / "other.json").write_text(json.dumps({"runs": []}))  # another benchmark's
    assert draw.main([str(results), "--no-plots"]) == 2
    full = run(row("emergence cuda", 1.0), row("emergence triton", 2.0)) | {
        "suite": "short",
        "versions": {},
        "threads": 1,
        "load_average": 0.0,
        "complete": True,
        "ceilings": {"matmul_tflops": 1.0, "copy_gbps": 1.0},
        "failures": [],
    }
    for each in full["rows"]:
        each["formula"] = "bytes"
        each["modes"]["both"] |= {"low_ms": 0.9, "high_ms": 2.1}
    (results / "run.json").write_text(json.dumps(full))
    assert draw.main([str(results), "--no-plots", "--ranking"]) == 0
    ranking._table.cache_clear()
    assert auto("rms_norm", 1024) == "cuda"
    assert "Commit abc." in (results / "run.md").read_text()


def test_the_table_that_is_committed_is_of_results_that_are():
    """ranking.json is not edited by hand."""
    stored = ROOT / "benchmarks" / "results"
    runs = [data for file in stored.rglob("*.json") if "ceilings" in (data := json.loads(file.read_text()))]
    assert json.loads(ranking.FILE.read_text()) == ranking.from_results(runs)
