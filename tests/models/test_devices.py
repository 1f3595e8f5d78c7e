"""The table of devices: names as CUDA reports them, and the peaks that MFU is counted by."""

import pytest

from emergence_train.models.devices import GPUS, flops_share, peak_flops


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H200", "h200-141gb"),
    ],
)
def test_mfu_and_a_plan_count_by_the_same_peak(name, kind):
    assert peak_flops(name) == GPUS[kind].bf16


def test_a_slower_card_of_a_kind_has_its_own_peak():
    assert peak_flops("NVIDIA H100 PCIe") == 756e12 < peak_flops("NVIDIA H100 NVL") < peak_flops("NVIDIA H100")


def test_mfu_of_one_token_a_second():
    assert flops_share(989e9, "NVIDIA H100 80GB HBM3", 4) == pytest.approx(1e-3 / 4)
    assert flops_share(989e9, "cpu", 1) is None and flops_share(None, "NVIDIA H100", 1) is None
