"""Do 95% intervals cover 95%? Over simulated runs; see also benchmarks/results/temporal_coverage.json."""

import pytest

from support import study


@pytest.mark.slow
def test_position_law_covers_93_to_97_percent():
    for name, part in study("temporal_coverage").position_coverage(500).items():
        assert 0.93 <= part["coverage95"] <= 0.97, (name, part)
        assert abs(part["bias_in_se"]) < 0.2, (name, part)


@pytest.mark.slow
def test_forecasts_cover_as_stated():
    """Three deviations of 100 draws about what the committed result has: 0.963, 0.974 and 0.984 of 160."""
    part = study("temporal_coverage").forecast_coverage(100, misfit=True)
    for key in ("end95", "mean95", "position95"):
        assert part[key] >= 0.9, (key, part)
    assert 0.71 <= part["end80"] <= 0.95 and 0.39 <= part["end50"] <= 0.73, part
