"""Every operation is in the lists that all of them share: one that is left out would be measured or tried by nobody."""

import re

import compiling
import pytest
import test_kernel_contracts
import test_kernel_dynamic_shapes
import test_kernel_layouts

import emergence_kernels as ek
from emergence_kernels.backends.dispatch import IMPLEMENTED
from emergence_kernels.bench.run import CASES
from support import ROOT

UPDATES = {"adamw_step"}  # works in place and has no gradient: its folder's tests do what these lists do
COMPOSED = {"feed_forward"}  # of other operations' kernels
TRITON = {name for name, backends in IMPLEMENTED.items() if "triton" in backends} - COMPOSED


def of_folders(names):
    return {getattr(ek, name).__module__.split(".")[1] for name in names}


@pytest.mark.parametrize(
    ("where", "names", "expected"),
    [
        ("bench/run.py CASES", CASES, set(IMPLEMENTED)),
        ("test_kernel_contracts.py OPERATIONS", test_kernel_contracts.OPERATIONS, set(IMPLEMENTED) - UPDATES),
        ("test_kernel_dynamic_shapes.py CASES", test_kernel_dynamic_shapes.CASES, set(IMPLEMENTED) - UPDATES),
        ("test_kernel_layouts.py OPERATIONS", test_kernel_layouts.OPERATIONS, set(IMPLEMENTED) - UPDATES),
        ("harness/compiling.py SUITES", compiling.SUITES, of_folders(TRITON)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_operations_are_in_every_shared_list(where, names, expected):
    assert expected <= set(names), f"{where} lacks {sorted(expected - set(names))}"


def test_operations_are_in_the_page():
    """In the table of docs/concepts/kernels.md that says which backends there are."""
    page = (ROOT / "docs" / "concepts" / "kernels.md").read_text()
    columns = set(re.findall(r"\w+", next(line for line in page.splitlines() if line.startswith("| | rms_norm"))))
    assert set(IMPLEMENTED) <= columns, set(IMPLEMENTED) - columns
