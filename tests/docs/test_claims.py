"""The table of claims: verdicts follow from the numbers, and links lead somewhere."""

import copy
import re

import pytest

from docs.site_pages import claims
from support import ROOT


@pytest.fixture
def changed(monkeypatch):
    """A function: change a result file in memory, by a function of its contents."""

    def changed(name: str, change) -> None:
        plain = claims.load_result

        def load(asked: str) -> dict:
            result = copy.deepcopy(plain(asked))
            if asked == name:
                change(result)
            return result

        monkeypatch.setattr(claims, "load_result", load)

    return changed


def test_every_row_says_what_was_measured_and_where():
    for make in claims.ROWS:
        row = make()
        assert row.measured and row.verdict and re.search(r"\d", row.measured), row
        for target in re.findall(r"\]\(([^)#]+)", row.more):
            assert (ROOT / "docs" / target).is_file(), (row.claim, target)


def test_commands_are_files_or_targets():
    targets = (ROOT / "Makefile").read_text()
    for make in claims.ROWS:
        first, *rest = make().command.split() or ["make", "docs"]
        if first.endswith(".py"):
            assert (ROOT / first).is_file(), first
        elif first == "make":
            assert f"\n{rest[0]}:" in targets, rest
        else:
            assert first == "emergence-train"


def test_verdicts_turn_with_the_numbers(changed):
    def no_decay(result: dict) -> None:
        result["decay"]["by_weight_decay"]["0"]["generalised"] = 12

    def heavier(result: dict) -> None:
        result["tiny"]["efficiency"][0] |= {"ratio": 1.1, "low95": 1.05, "high95": 1.2}

    def other_sign(result: dict) -> None:
        result["tiny"]["trend"] |= {"value": 0.2, "low95": 0.1, "high95": 0.3}

    def worse(result: dict) -> None:
        result["after"]["forecasts"]["folder"]["0.1"]["all"]["median quotient"] = 1.2

    def more_with_size(result: dict) -> None:
        result["trend_of_100"] |= {"low95": 3.0}

    def controls_repeated(result: dict) -> None:
        result["controls_extracted"] = 7

    name = "grokking_runs.json"
    cases = [
        (claims.weight_decay, name, no_decay, claims.NOT),
        (claims.efficiency, name, heavier, claims.NOT),
        (claims.critical_share, name, other_sign, "grows here"),
        (claims.memorises_more, "memorisation_sizes.json", more_with_size, claims.HOLDS),
        (claims.repeated, "memorisation_sizes.json", controls_repeated, claims.NOT),
        (claims.forecasts, "temporal_laboratories.json", worse, claims.NOT),
    ]
    for make, file, change, verdict in cases:
        before = make().verdict
        changed(file, change)
        assert make().verdict == verdict != before, make


def test_page_has_a_row_for_each_claim():
    page = claims.page()
    assert page.count("\n| ") == len(claims.ROWS) + len(claims.UNTRIED) + 1
