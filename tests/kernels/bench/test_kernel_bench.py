"""The benchmark runs, keeps its rows when interrupted, and its tables can be redrawn."""

import itertools
import json
import math
import statistics
import sys
import time
import types

import pytest
import torch

from emergence_kernels.backends import library
from emergence_kernels.bench import attention, draw, losses, main
from emergence_kernels.bench.attention import _pairs
from emergence_kernels.bench.candidate import candidates, errors_of, peers_first
from emergence_kernels.bench.processes import CUT
from emergence_kernels.bench.results import Results
from emergence_kernels.bench.step import Model, flops_per_token
from emergence_kernels.bench.timing import Stopwatch, ceilings, difference, measure

OF_LOSSES = losses._peers
TINY = ["--suite", "tiny", "--device", "cpu"]


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    """Without the interpreter, which is slow, and without peers, which need a GPU."""
    monkeypatch.setattr("emergence_kernels.bench.run.interpreting", lambda: False)
    monkeypatch.setattr("emergence_kernels.bench.losses._peers", lambda *_: ())
    for peers in ("_norm_peers", "_swiglu_peers"):
        monkeypatch.setattr(f"emergence_kernels.bench.norms.{peers}", lambda *_: ())
    monkeypatch.setattr("emergence_kernels.bench.feed_forwards._liger", lambda *_: ())


def test_everything_once(tmp_path, capsys):
    assert main([*TINY, "--out", str(tmp_path)]) == 0
    (file,) = (tmp_path / "cpu").glob("*.json")
    data = json.loads(file.read_text())
    assert data["complete"] and not data["failures"] and data["versions"]["torch"]
    ops = ["position_loss", "linear_cross_entropy", "rms_norm", "attention", "rotary", "swiglu"]
    ops += ["feed_forward", "fp8_linear", "adamw_step", "step"]
    assert list(dict.fromkeys(row["op"] for row in data["rows"])) == ops
    for row in data["rows"]:
        both = row["modes"]["both"]
        assert 0 < both["low_ms"] <= both["median_ms"] <= both["high_ms"] and both["repeats"] >= 5
        limit = 0.06 if (row["op"], row["candidate"]) == ("fp8_linear", "emergence torch") else 1e-5
        assert all(error < limit for error in row.get("errors", {}).values()), row
    names = {row["candidate"] for row in data["rows"] if row["op"] == "position_loss"}
    assert {"emergence torch", "torch eager"} <= names
    assert "position_loss" in capsys.readouterr().out

    pytest.importorskip("matplotlib")
    assert draw.main([str(tmp_path)]) == 0
    text = file.with_suffix(".md").read_text()
    assert all(row["candidate"] in text for row in data["rows"]) and "Not complete" not in text
    assert len(list((tmp_path / "cpu").glob("*.png"))) == 10

    file.write_text(json.dumps(data).replace('"candidate":', '"contender":'))  # as earlier versions wrote it
    assert draw.main([str(file), "--no-plots"]) == 0 and file.with_suffix(".md").read_text() == text


@pytest.mark.parametrize("name", ["nosuch", "notes.md", "broken/cpu.json"])
def test_redrawing_what_is_no_result_is_refused(tmp_path, name, capsys):
    (tmp_path / "broken").mkdir()
    for file in ("notes.md", "broken/cpu.json"):
        (tmp_path / file).write_text("# Notes")
    assert draw.main([str((tmp_path / name).parent if "/" in name else tmp_path / name)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"redraw: {tmp_path / name}: ")


def test_a_spent_budget_is_continued(tmp_path, monkeypatch):
    """Shapes that were not reached are listed, and the only ones that a call --since then measures; a shape begun is finished.
    Runs that begin in the same second have files of their own."""
    stamps = ["20260101-000000"] * 4 + ["20260101-000001"] * 2 + ["20260101-000002"]
    monkeypatch.setattr("emergence_kernels.bench.run.timestamp", lambda: stamps.pop(0))
    command = [*TINY, "--op", "rms_norm", "--op", "rotary", "--out", str(tmp_path)]
    assert main([*command, "--budget", "0"]) == CUT == 75
    (file,) = (tmp_path / "cpu").glob("*.json")
    data = json.loads(file.read_text())
    left = {"op": "rms_norm", "shape": {"rows": 32, "features": 48, "residual": False}}
    assert not data["complete"] and data["cut_short"] == ["rms_norm"] and data["not_reached"] == [left]
    assert {row["op"] for row in data["rows"]} == {"rms_norm", "rotary"} and left not in data["finished"]
    assert "Not complete" in draw.table(data)
    for call, finished in ((2, [left]), (3, [])):
        assert main([*command, "--since", data["utc"]]) == 0
        files = sorted((tmp_path / "cpu").glob("*.json"))
        rest = json.loads(files[-1].read_text())
        assert len(files) == call and rest["complete"] and rest["finished"] == finished


def test_shapes_are_finished_for_the_same_candidates(tmp_path, monkeypatch):
    """Not by a run of some of them, or of other libraries; nor by one of a version that did not list what it finished."""
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "20251231-000000-tiny-float32.json").write_text(
        '{"suite": "tiny", "dtype": "float32", "rows": []}'
    )
    seconds = itertools.count()
    monkeypatch.setattr("emergence_kernels.bench.run.timestamp", lambda: f"20260101-{next(seconds):06d}")
    command = [*TINY, "--op", "swiglu", "--out", str(tmp_path), "--since", "20250101-000000"]

    def measured(*more):
        assert main([*command, *more]) == 0
        return {row["candidate"] for row in json.loads(max((tmp_path / "cpu").glob("*.json")).read_text())["rows"]}

    assert measured("--only", "torch eager") == {"torch eager"}
    with monkeypatch.context() as without:
        without.setenv(library.VARIABLES["cpu"], str(tmp_path / "left out"))
        assert measured() == {"torch eager", "emergence torch"}
    assert measured() >= {"torch eager", "emergence torch"} and not measured()


@pytest.mark.parametrize(
    "codes, status", [((1, 75), 1), ((0, 75), 75), ((75, 0), 75), ((-11, 0), 1), ((75, -9), 1), ((0, 0), 0)]
)
def test_the_status_of_several_operations(codes, status, monkeypatch, tmp_path):
    """A failure, or a signal's end, is not masked by a budget that left shapes out; and each continues what was begun."""
    ends, commands = iter(codes), []

    def run(command, **_):
        commands.append(command)
        return types.SimpleNamespace(returncode=next(ends))

    monkeypatch.setattr("emergence_kernels.bench.processes.subprocess.run", run)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(library, "unsupported_reason", lambda *_: "not built")
    command = ["--device", "cuda", "--op", "rms_norm", "--op", "swiglu", "--since", "20260101-000000"]
    assert main([*command, "--out", str(tmp_path)]) == status
    assert [each[each.index("--since") + 1] for each in commands] == ["20260101-000000"] * 2


def test_times_are_written_before_all_are_measured(tmp_path, monkeypatch):
    """After each candidate is made, and after each round: what is killed then loses no more than that."""
    seen = []
    original = Results.write

    def write(self):
        original(self)
        if unfinished := json.loads(self.path.read_text())["unfinished"]:
            seen.append((unfinished["rounds"], len(unfinished["median_ms"]), len(self.data["rows"])))

    monkeypatch.setattr(Results, "write", write)
    assert main([*TINY, "--op", "swiglu", "--rounds", "2", "--out", str(tmp_path)]) == 0
    names = len(json.loads(next(tmp_path.rglob("*.json")).read_text())["rows"])
    assert seen[: names + 2] == [*((0, n + 1, 0) for n in range(names)), (1, names, 0), (2, names, 0)]


def test_errors_are_relative_and_by_name():
    """Results that are off by known shares, of one output and of two, whose gradients add up."""
    x, w, upstream = (torch.rand(5, 3, dtype=torch.float64) + 0.5 for _ in range(3))
    results = (1.25 * x * w, 0.5 * upstream * w, upstream * x)
    errors = errors_of(torch.mul, ("y", "dx", "dw"), (x, w), upstream, results)
    assert errors == pytest.approx({"y": 0.25, "dx": 0.5, "dw": 0}, abs=1e-12)
    results = (x * x, 1.5 * x, 2 * upstream * (2 * x + 1))
    errors = errors_of(lambda x: (x * x, x), ("y", "z", "dx"), (x,), upstream, results)
    assert errors == pytest.approx({"y": 0, "z": 0.5, "dx": 1}, abs=1e-12)


def test_our_candidates_are_after_the_others():
    """The CUDA kernels last; nothing is compiled in the tiny suite. An op gets the leaves and its backend."""
    leaves, peers = (torch.ones(2),), [("peer", lambda: torch.zeros(2))]
    ways = candidates(lambda x, backend: x * len(backend), torch.neg, leaves, ["cuda", "torch"], "tiny", peers)
    results = {each.name: each.forward()[0].item() for each in (make() for make in ways)}
    assert list(results.items()) == [("peer", 0), ("torch eager", -1), ("emergence torch", 5), ("emergence cuda", 4)]
    names = [make().name for make in candidates(torch.add, torch.neg, leaves, [], "laptop")]
    assert names == ["torch eager", "torch.compile"]


def test_gradients_of_losses_and_attention_have_errors(tmp_path):
    assert main([*TINY, "--op", "position_loss", "--op", "attention", "--out", str(tmp_path)]) == 0
    rows = json.loads(next(tmp_path.rglob("*.json")).read_text())["rows"]
    for row in rows:
        assert row["errors"].keys() >= ({"out", "dq", "dk", "dv"} if row["op"] == "attention" else {"dx", "dw"})
        assert all(1e-9 < error < 1e-5 for error in row["errors"].values()), row


@pytest.mark.parametrize("seconds, holds, outlasts", [(0, 1, False), (0.008, 6, False), (0.03, 7, True)])
def test_the_gpu_is_held_for_twice_what_python_takes(seconds, holds, outlasts, monkeypatch):
    """Holds have 3 ms; one that would have to be too long is named."""
    watch, now = Stopwatch(torch.device("cpu")), [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def run():
        now[0] += seconds

    watch.warm(run, 0, 1)
    assert watch.holds[run] == holds
    assert not watch.python_in_window(run, 1e9), "a CPU's times are Python's too"
    watch.flush = torch.empty(0)
    assert watch.python_in_window(run, seconds * 1e3) is outlasts


def test_shapes_are_chosen_by_their_text(tmp_path):
    for where, rows in (("features=32 ", True), ("features=33", False)):
        out = tmp_path / str(rows)
        assert main([*TINY, "--op", "position_loss", "--where", where, "--out", str(out)]) == 0
        assert bool(json.loads(next(out.rglob("*.json")).read_text())["rows"]) == rows


def test_a_cpu_gets_shapes_for_one(tmp_path, monkeypatch):
    monkeypatch.setattr("emergence_kernels.bench.run._shapes", lambda *_: [])
    assert main(["--device", "cpu", "--out", str(tmp_path)]) == 0
    (file,) = (tmp_path / "cpu").glob("*.json")
    assert json.loads(file.read_text())["suite"] == "laptop"


def test_backward_has_the_spread_of_both_times():
    """Two normal distributions: of their difference the 20th and 80th percentiles are 0.8416 of its deviation away."""
    forward, both = (
        [statistics.NormalDist(mean, sd).inv_cdf((i + 0.5) / 100) for i in range(100)]
        for mean, sd in ((10, 1.0), (30, 0.5))
    )
    got, away = difference(both, forward), 0.8416 * math.hypot(1.0, 0.5)
    assert got.median_ms == pytest.approx(20, abs=0.02) and got.repeats == 100
    assert (got.low_ms, got.high_ms) == pytest.approx((20 - away, 20 + away), abs=0.02)


def test_a_backward_lost_in_noise_is_left_out(tmp_path, monkeypatch):
    """Where forward and backward together measure shorter than forward alone."""
    times = itertools.cycle([1.0, 2.0, 1.5])
    monkeypatch.setattr("emergence_kernels.bench.run.ceilings", lambda *_: {"matmul_tflops": 1.0, "copy_gbps": 1.0})
    monkeypatch.setattr(Stopwatch, "sample", lambda self, run, repeats: [next(times)] * 5)
    main([*TINY, "--op", "rms_norm", "--budget", "0", "--out", str(tmp_path)])
    (file,) = (tmp_path / "cpu").glob("*.json")
    data = json.loads(file.read_text())
    assert set(data["rows"][0]["modes"]) == {"eval", "forward", "both"} and "1.5" in draw.table(data)


@pytest.mark.slow
def test_each_operation_in_a_process_of_its_own(tmp_path, monkeypatch, capfd):
    """As on a GPU; one that hangs is killed, and the others' rows are there."""
    from emergence_kernels.bench import processes, run

    args = run.parser().parse_args(["--device", "cpu", "--out", str(tmp_path), "--budget", "2"])
    monkeypatch.setattr(processes, "PATIENCE", 500)  # a busy machine imports slowly
    assert processes.apart(args, ["rotary"], "tiny", "float32") == 0
    files = sorted((tmp_path / "cpu").glob("*.json"))
    assert {file.name.split("-")[2] for file in files} == {"rotary"}
    assert all(json.loads(file.read_text())["rows"] for file in files)
    monkeypatch.setattr(processes, "PATIENCE", 0)
    args.budget = 0.0
    assert processes.apart(args, ["rotary"], "tiny", "float32") == 1 and "rotary was killed" in capfd.readouterr().err


def test_a_failing_peer_is_kept(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no such kernel\nsecond line")

    monkeypatch.setattr("emergence_kernels.bench.losses._eager", broken)
    monkeypatch.setattr("emergence_kernels.bench.losses._peers", OF_LOSSES)
    monkeypatch.setattr("emergence_kernels.bench.losses._quack", broken)  # as where its import fails
    assert main([*TINY, "--op", "position_loss", "--out", str(tmp_path)]) == 0
    (file,) = (tmp_path / "cpu").glob("*.json")
    data = json.loads(file.read_text())
    failed = {
        row["candidate"]: row["error"] for row in data["failures"]
    }  # Liger's too, where it is installed: it needs a GPU
    assert (
        failed.items() >= dict.fromkeys(("torch eager", "quack"), "RuntimeError: no such kernel").items()
        and data["rows"]
    )


def test_our_own_failure_is_an_error(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("broken")

    monkeypatch.setattr("emergence_kernels.bench.losses.position_loss", broken)
    command = [*TINY, "--op", "position_loss", "--out", str(tmp_path), "--since", "20260101-000000"]
    for _ in range(2):  # not done at the second call either
        assert main(command) == 1
    assert not any(json.loads(path.read_text())["finished"] for path in tmp_path.rglob("*.json"))


def test_a_variant_takes_its_place_and_leaves_it():
    """Forward and backward run with the entry in its place in the table, which is restored."""
    from emergence_kernels.bench import variants
    from emergence_kernels.bench.candidate import Candidate

    table, x = {"sm_90": 2.0, "sm_80": 3.0}, torch.ones(1, requires_grad=True)

    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * table["sm_90"]

        @staticmethod
        def backward(ctx, dy):
            return dy * table["sm_90"]

    usual = Candidate("ours", lambda: Scaled.apply(x), (x,))
    other = variants.in_place(usual, "sm_80's", (table, "sm_90"), table["sm_80"])
    assert other.name == "ours, sm_80's"
    for candidate, factor in ((other, 3.0), (usual, 2.0)):
        assert [t.item() for t in candidate.both(torch.ones(1))] == [factor, factor]
    assert other.forward().item() == 3.0 and table["sm_90"] == 2.0


def test_wrong_use(tmp_path, capsys):
    if not torch.cuda.is_available():
        assert main(["--device", "cuda", "--out", str(tmp_path)]) == 2
        assert "no CUDA device" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["--op", "softmax"])
    assert stop.value.code == 2
    assert draw.main([str(tmp_path)]) == 2


def test_formulas():
    assert _pairs(4, "full") == 16 and _pairs(4, "causal") == 10
    assert _pairs(2048, "window") == 1024 * 1025 / 2 + 1024**2
    assert _pairs(2048, "documents") == 4 * 512 * 513 / 2
    model = Model(8, 16, 2, 1, 11, 4, "torch")
    multiplied = 8 * 24 + 8 * 8 + 8 * 32 + 16 * 8 + 11 * 8  # qkv, out, gate and up, down, the tied head once
    assert flops_per_token(model, 8, 1, 4) == 6 * multiplied + 6 * 1 * 8 * 4


def test_documents_are_several_in_every_suite():
    """The FLOPs are those of the pairs that the ids of the row let see each other, counted one by one."""
    shapes = {shape for suite in attention.SHAPES.values() for shape in suite if shape[-1] == "documents"}
    assert len({T for _, T, *_ in shapes}) > 1
    for case in attention.cases("laptop", torch.device("cpu"), torch.float32, ["torch"]):
        ids, shape = case.candidates[0].args[1].keywords["document_ids"], case.shape
        if shape["kind"] == "documents":
            assert all(len(set(row)) > 1 for row in ids.tolist())
            pairs = ((ids[:, :, None] == ids[:, None]) & torch.ones(256, 256, dtype=torch.bool).tril()).sum().item()
            assert case.flops["forward"] == 4 * pairs * shape["heads"] * shape["head_dim"]
    assert all(T % attention.DOCUMENTS == 0 and T > attention.DOCUMENTS for _, T, *_ in shapes)


def test_timing_counts():
    calls = []
    timing = measure(lambda: calls.append(1), torch.device("cpu"), seconds=0, at_least=7)
    assert timing.repeats == 7 and len(calls) == 10


def test_each_call_on_a_gpu_begins_with_a_cold_cache(monkeypatch):
    """The flush and the hold come before the first event, and between the events is the call alone."""
    order = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            order.append("event")

        def elapsed_time(self, end):
            return 2.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: order.append("hold"))
    watch = Stopwatch(torch.device("cpu"))
    watch.flush = types.SimpleNamespace(sum=lambda: order.append("flush"))
    assert watch.sample(lambda: order.append("call"), 3) == [2.0] * 3
    assert order == ["flush", "hold", "event", "call", "event"] * 3


def test_ceilings_count_what_is_read_and_written(monkeypatch):
    """In a millisecond each: 2 n^3 operations, and a copy's 16 MiB twice."""
    monkeypatch.setattr(
        "emergence_kernels.bench.timing.measure", lambda run, device: types.SimpleNamespace(median_ms=1.0)
    )
    rates = ceilings(torch.device("cpu"), torch.float32)
    assert rates == {"matmul_tflops": 2 * 512**3 / 1e9, "copy_gbps": 2 * 2**24 / 1e6}


def test_cuda_is_measured_last():
    """An error of its kernels is every later candidate's."""
    names = ["emergence cuda", "emergence triton", "torch", "emergence torch", "a peer"]
    order = sorted([(name, None) for name in names], key=peers_first)
    assert [name for name, _ in order] == ["torch", "a peer", "emergence triton", "emergence torch", "emergence cuda"]


@pytest.mark.parametrize("kernels", [pytest.param("triton", marks=pytest.mark.slow), "cuda"])
def test_the_model_trains_the_same_with_kernels_on(kernels, device, request):
    """A few steps of a tiny decoder, every operation by our kernels and by PyTorch: the same losses."""
    missing = request.getfixturevalue("triton_only" if kernels == "triton" else "cuda_library")
    if kernels == "cuda" and missing:
        pytest.skip(missing)
    dtype = torch.float32 if kernels == "triton" else torch.bfloat16  # CUDA's attention takes 16 bits only
    losses = {}
    for backend in ("plain", "torch", kernels):
        torch.manual_seed(0)
        model = Model(16, 24, 2, 2, 29, 8, backend).to(device, dtype)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        data = torch.randint(29, (2, 9), device=device)
        losses[backend] = []
        for _ in range(4):
            loss = model(data[:, :-1], data[:, 1:])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[backend].append(loss.item())
    close = 1e-4 if dtype == torch.float32 else 1e-2
    assert losses["torch"] == pytest.approx(losses[kernels], rel=close)
    assert losses["torch"] == pytest.approx(losses["plain"], rel=close)
    assert losses[kernels][-1] < losses[kernels][0] - 0.1


@pytest.mark.parametrize("there", [True, False])
def test_liger_may_have_chunks_as_large_as_ours(there, monkeypatch):
    from emergence_kernels.bench import losses

    seen = []

    class Function:
        @staticmethod
        def forward(ctx, _input, weight, target, bias=None, reduction="mean", chunk_mem_const=1):
            pass

        @staticmethod
        def apply(*arguments):
            seen.append(arguments[3:])
            return arguments[0], None

    if not there:
        Function.forward = staticmethod(lambda ctx, _input, weight, target, bias=None, reduction="mean": None)
    module = types.SimpleNamespace(LigerFusedLinearCrossEntropyFunction=Function)
    for name in ("liger_kernel", "liger_kernel.ops", "liger_kernel.ops.fused_linear_cross_entropy"):
        monkeypatch.setitem(sys.modules, name, module)
    hidden, weight = (torch.empty(rows, 16, device="meta") for rows in (3 * 4096, 16 * 60))
    run = losses._liger_by_large_chunks(hidden, weight, None, "none")
    if not there:
        assert run is None
        return
    assert run() is hidden and seen == [(None, "none", 20)]  # 960 logits a token for 20 times 16: three chunks
