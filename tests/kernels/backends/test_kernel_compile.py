"""Every configuration that "auto" can choose compiles for sm_80 and sm_90, all but without spills, on the matrix units.

No GPU is needed: Triton compiles for a named target, and its cuobjdump reads the result.
"""

import json

import pytest
from compiled import HARNESS

from support import run_python

pytest.importorskip("triton")


def compiled(suite: str, *choices: str, tables: tuple[str, ...] = ("sm_80", "sm_90")) -> list[dict]:
    """In another process: this one may use the interpreter. choices: as of compiling.main."""
    run = run_python(str(HARNESS / "compiling.py"), suite, *choices, timeout=590)
    assert run.returncode == 0, run.stderr[-3000:]
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert {row["arch"] for row in rows} == set(tables)
    return rows


DQ_FULL_OF_REGISTERS = ("dq D=32 causal", "dq D=80 full", "dq D=96 full", "dq D=128 full")


def spilled_bytes(row: dict) -> int:
    """Bytes that a thread may spill: a few in Hopper's dkdv above head dim 64, for wide products (triton_configs.py)."""
    uneven = row["suite"] == "attention_uneven"
    wide_dkdv = row["kernel"].startswith("dkdv ") and not row["kernel"].startswith(("dkdv D=32 ", "dkdv D=64 "))
    if uneven and row["arch"] == "sm_80" and row["kernel"] in DQ_FULL_OF_REGISTERS:
        return 8  # ptxas takes 128 or 168 registers, so that two or three blocks fit
    if row["arch"] != "sm_90" or row["dtype"] == "float32" or not wide_dkdv:
        return 0
    return {"attention_uneven": 160, "attention_scores": 192}.get(row["suite"], 64)


def check(rows: list[dict], with_matrix: tuple[str, ...]) -> None:
    for row in rows:
        allowed = spilled_bytes(row)
        assert row["stack"] <= allowed and (allowed or row["spills"] == 0), row
        assert row["shared"] <= {"sm_80": 163, "sm_90": 227}[row["arch"]] * 1024, row
        if row["kernel"].startswith(with_matrix):
            assert row["matrix"] > 0, row
            assert (row["wgmma"] > 0) == (row["arch"] == "sm_90"), row
            if row["suite"].startswith("attention") and "D=32" not in row["kernel"]:
                assert min(row["columns"], default=64) >= 64, row


def test_the_table_of_each_architecture():
    """12.x is newer than Hopper, and has 99 KB of shared memory."""
    from emergence_kernels.backends import triton_configs as configs

    tables = {major: configs.table_of(major) for major in (8, 9, 10, 11, 12)}
    assert tables == {8: "sm_80", 9: "sm_90", 10: "sm_90", 11: "sm_90", 12: "sm_80"}


both = pytest.mark.parametrize("number", ["90", "80"])


@pytest.mark.slow
@both
def test_cross_entropy(number):
    rows = compiled("cross_entropy", "bfloat16", number, tables=(f"sm_{number}",))
    assert len(rows) == 6
    check(rows, ("statistics",))


@pytest.mark.slow
@both
def test_loss_rows(number):
    """A vocabulary of odd size, too, is read by 16 bytes and written by as many bytes as the gradients of four logits have."""
    rows = compiled("loss_rows", "bfloat16", number, tables=(f"sm_{number}",))
    check(rows, ())
    for row in rows:
        wide = "loss_rows float32" in row["kernel"]
        assert {kind for kind in row["loads"] if kind.endswith(".128")}, row
        # Scalars only: valid, target, its logit, scale.
        assert sum(number for kind, number in row["loads"].items() if not kind.endswith(".128")) == 4, row
        assert {kind for kind in row["stores"] if kind.endswith(".64" if wide else ".128")}, row
        assert row["stores"].get("STG.E.U16") == 1, row  # the target's entry
        if "V=50257" in row["kernel"] and "softcap=False" in row["kernel"]:
            assert row["registers"] <= 32, row  # two programs of 1024 threads


@pytest.mark.slow
@both
def test_rms_norm_and_rotary(number):
    rows = compiled("rms_norm", "rotary", "bfloat16", number, tables=(f"sm_{number}",))
    assert {row["suite"] for row in rows} == {"rms_norm", "rotary"}
    check(rows, ())
    for row in rows:
        assert row["suite"] != "rotary" or all(access.endswith(".128") for access in row["global"]), row


@pytest.mark.slow
@both
def test_swiglu(number):
    """16 bytes an access and nothing narrower, whatever the dtype."""
    rows = compiled("swiglu", "bfloat16", "float32", number, tables=(f"sm_{number}",))
    check(rows, ())
    for row in rows:
        assert row["global"] and all(access.endswith(".128") for access in row["global"]), row


@pytest.mark.slow
@both
def test_adamw(number):
    """16 bytes an access but for the copy, whose neighbours in a thread are eight."""
    rows = compiled("adamw", "bfloat16", number, tables=(f"sm_{number}",))
    check(rows, ())
    for row in rows:
        wide = [access for access in row["global"] if access.endswith(".128")]
        assert len(wide) == 2 and not any("U16" in access for access in row["global"]), row


@pytest.mark.slow
def test_fp8_linear():
    """Hopper's alone: values are read and written by 16 bytes, scales and maxima apart."""
    rows = compiled("fp8_linear", "bfloat16", "90", tables=("sm_90",))
    assert len(rows) == 6
    check(rows, ())
    for row in rows:
        narrow = {access for access in row["global"] if not access.endswith(".128")}
        assert narrow == ({"STG.E", "LDG.E.U16"} if row["kernel"] == "columns any" else {"STG.E"}), row


@pytest.mark.slow
@both
def test_attention(number):
    rows = compiled("attention_common", "bfloat16", number, tables=(f"sm_{number}",))
    assert {row["kernel"].split()[0] for row in rows} == {"forward", "dkdv", "dq"}
    check(rows, ("forward", "dkdv", "dq"))


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["attention", "attention_uneven", "attention_scores"])
def test_every_attention(suite):
    """Every head dim and mask; float16 has the same tiles."""
    check(compiled(suite, "bfloat16"), ("forward", "dkdv", "dq"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "suite", ["cross_entropy", "cross_entropy_uneven", "loss_rows", "rms_norm", "rotary", "swiglu"]
)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_other_dtypes(suite, dtype):
    check(compiled(suite, dtype), ("statistics",) if dtype == "float16" else ())


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["attention_common", "cross_entropy", "loss_rows"])
@pytest.mark.parametrize("target, table, shared", [("100", "sm_90", 227), ("120", "sm_80", 99)])
def test_newer_architectures(suite, target, table, shared):
    """They have no tables of their own: what they use compiles, and fits their shared memory. On 10.0 some registers spill."""
    rows = compiled(suite, "bfloat16", target, tables=(table,))
    assert {row["target"] for row in rows} == {int(target)}
    assert all(row["shared"] <= shared * 1024 for row in rows), max(rows, key=lambda row: row["shared"])
