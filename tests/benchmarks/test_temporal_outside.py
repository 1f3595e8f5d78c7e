"""Curves of forms that the analysis does not contain: what they are, and how many of their ends the intervals hold."""

import numpy as np
import pandas as pd
import pytest

import support


@pytest.fixture(scope="module")
def study():
    return support.study("temporal_outside")


def test_every_form_falls_and_the_rows_are_noisy(study):
    for form in study.FORMS:
        case = study.draw(form, "constant", 3)
        later = case.truth[len(case.truth) // 4 :]
        assert np.all(np.diff(later) < 0) and 1.5 < later[-1] < 5, form
        assert 0.001 < np.std(case.loss - case.truth) < 0.02, form


def test_the_floor_settles_at_the_rate(study):
    """At one rate to drop * rate^power; when it falls to 0, nothing keeps moving."""
    rate = np.r_[np.ones(2000), np.full(4000, 0.25), np.zeros(50)]
    levels = study.floor(rate, 0.2, 0.5, 100.0)
    assert levels[1999] == pytest.approx(0.2, abs=1e-6) and levels[5999] == pytest.approx(0.1, abs=1e-5)
    assert np.all(levels[6000:] == levels[5999])


def held(study, forms, schedules, seeds, fractions) -> float:
    rows = [
        row
        for form in forms
        for schedule in schedules
        for seed in range(seeds)
        for row in study.scores(study.draw(form, schedule, seed), fractions)
    ]
    return float(pd.DataFrame(rows)["held"].mean())


def test_power_laws_of_other_exponents_are_held(study):
    """A constant rate, where nothing but the exponent matters; 4 of these 16 where only the laboratories' exponents count."""
    assert held(study, ("power 0.25", "power 0.35"), ("constant",), 4, (0.2, 0.4)) >= 0.85


@pytest.mark.slow
def test_outside_forms_are_held_as_published(study):
    assert held(study, study.FORMS, study.SCHEDULES, 2, study.FRACTIONS) >= 0.8
