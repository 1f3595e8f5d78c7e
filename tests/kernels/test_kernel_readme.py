"""What kernels/README.md shows runs, on a CPU."""

import re

import pytest

from support import ROOT

README = ROOT / "kernels" / "README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)


def test_every_operation_has_an_example():
    import emergence_kernels as ek

    operations = [name for name in ek.__all__ if name[0].islower() and not name.endswith(("backend", "backends"))]
    assert len(operations) == 14  # patch_llama among them
    for name in (*operations, "LMHead"):
        used = "LMHead" if name == "position_loss" else name  # which calls it
        assert any(f"ek.{used}(" in example for example in EXAMPLES), name
    assert all(len(example.splitlines()) <= 12 for example in EXAMPLES)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(number):
    if "transformers" in EXAMPLES[number]:
        pytest.importorskip("transformers")
    exec(compile(EXAMPLES[number], f"{README.name}, example {number + 1}", "exec"), {})
