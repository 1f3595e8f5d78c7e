"""The page of what checkpoints repeat: its numbers are the result's, names are escaped."""

import re

import numpy as np
import pandas as pd

from emergence_train.analysis.memorisation import analyze
from emergence_train.report.memorise_page import write_page


def probed(runs: int = 4, items: int = 60) -> pd.DataFrame:
    """Each item is in the data of every other run, seen eight times there; half of those come back exactly."""
    rng = np.random.default_rng(0)
    rows = []
    for run in range(runs):
        for item in range(items):
            seen = 8 * ((run + item) % 2)
            loss = 3.0 - 0.2 * seen + 0.1 * rng.standard_normal()
            rows.append(
                {
                    "run": f"<b>{run}",
                    "item": f"i{item}",
                    "seen": seen,
                    "loss": loss,
                    "extracted": bool(seen and item % 4 < 2),
                }
            )
    return pd.DataFrame(rows).assign(params=1000, step=5, prefix=8, continuation=4)


def test_the_page_has_the_results_numbers(tmp_path):
    result = analyze(probed())
    text = write_page(tmp_path, result).read_text()
    first, (compared, *_) = result.runs[0], result.counterfactual
    assert f"{first.of_100:.1f} [{first.of_100_low95:.1f}, {first.of_100_high95:.1f}]" in text
    assert f"{compared.nats.value:.3f} [{compared.nats.low95:.3f}, {compared.nats.high95:.3f}]" in text
    assert 'id="counterfactual"' in text and "<svg" in text and "<b>" not in text and "&lt;b&gt;0" in text
    assert not re.search(r'(src|href)="https?:', text)


def test_one_model_has_no_comparison(tmp_path):
    probe = probed(runs=1)
    text = write_page(tmp_path, analyze(probe)).read_text()
    assert 'id="counterfactual"' not in text and "30 of 30" not in text and re.search(r"\b1[0-9] of 30\b", text)
