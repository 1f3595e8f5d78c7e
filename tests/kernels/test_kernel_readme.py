"""What kernels/README.md shows runs, on a CPU."""

import re

import pytest

from emergence_kernels.backends import ranking
from emergence_kernels.rms_norm.op import MAX_FEATURES, MAX_FEATURES_SINGLY
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


def test_the_page_has_the_limits_of_the_code():
    page = (ROOT / "docs" / "concepts" / "kernels.md").read_text(encoding="utf-8")
    assert f"backends within {100 * (ranking.LEVEL - 1):.1f}% of the fastest" in page
    assert f"up to {MAX_FEATURES} features, and to {MAX_FEATURES_SINGLY} where a row is no multiple of 16 bytes" in page


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(number):
    if "transformers" in EXAMPLES[number]:
        pytest.importorskip("transformers")
    exec(compile(EXAMPLES[number], f"{README.name}, example {number + 1}", "exec"), {})
