"""Do 95% intervals cover 95%? Over 500 simulated runs; see also benchmarks/results/temporal_coverage.json."""

import pytest

from support import study


@pytest.mark.slow
def test_position_law_covers_93_to_97_percent():
    for name, part in study("temporal_coverage").position_coverage(500).items():
        assert 0.93 <= part["coverage95"] <= 0.97, (name, part)
        assert abs(part["bias_in_se"]) < 0.2, (name, part)


@pytest.mark.slow
def test_forecasts_cover_as_stated():
    part = study("temporal_coverage").forecast_coverage(500, misfit=True)
    for key in ("end95", "mean95", "position95"):
        assert 0.93 <= part[key] <= 0.99, (key, part)  # 0.963, 0.974 and 0.984 of 160 where the result was committed
    assert 0.75 <= part["end80"] <= 0.92 and 0.42 <= part["end50"] <= 0.70, part
