"""The share of a domain's text that a stretch of samples leaves out, against the windows that a sampler draws."""

from types import SimpleNamespace

import numpy as np
import pytest

from emergence_train.data.lineage import Stretch
from emergence_train.data.sampling import BLOCK, Sampler

SEQUENCE = 8


@pytest.mark.parametrize(
    ("begin", "end"), [(0, 0.4), (0.3, 0.9), (0.5, 1.3), (0.6, 2.0), (1.2, 3.1), (0, 1), (0.7, 0.7)]
)
def test_left_out_is_what_no_window_holds(begin, end):
    """Two domains, the second with three of four samples and half as many passes: as a plain count has them."""
    lengths = [SEQUENCE * BLOCK, 6 * SEQUENCE * BLOCK]
    sampler = Sampler(lengths, [1.0, 3.0], SEQUENCE, 7)
    first, last = int(4 * BLOCK * begin), int(4 * BLOCK * end)
    covered, drawn = [np.zeros(length, dtype=bool) for length in lengths], [0, 0]
    for index in range(first, last):
        window = sampler[index]
        covered[window.domain][window.start : window.start + SEQUENCE] = True
        drawn[window.domain] += 1

    stretch = Stretch(SimpleNamespace(sampler=sampler), first, last)
    assert stretch.samples == last - first
    np.testing.assert_allclose(stretch.passes(), np.divide(drawn, sampler.windows), atol=0.01)
    for domain, part in enumerate(covered):
        chance = stretch.unseen(domain, np.arange(len(part)), 1)
        np.testing.assert_allclose(chance.mean(), 1 - part.mean(), atol=0.015)
        assert not part[chance == 1].any()
