"""The table of claims: verdicts follow from the numbers, and links lead somewhere."""

import copy
import re

import pytest

from docs.site_pages import claims, public_claims, story_claims
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

        for module in (claims, public_claims, story_claims):
            monkeypatch.setattr(module, "load_result", load)

    return changed


def test_every_row_says_what_was_measured_and_where():
    for make in claims.ROWS:
        row = make()
        assert row.measured and row.verdict and re.search(r"\d", row.measured), row
        for target in re.findall(r"\]\(([^)#]+)", row.more):
            written = (ROOT / "docs" / target).is_file()
            assert written or target == "typology.md", (row.claim, target)  # that page is made with this one


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
        row = {"ratio": 1.1, "low95": 1.05, "high95": 1.2, "generalising_runs": 8, "memorising_runs": 7}
        result["tiny"]["efficiency"] = [row]

    def other_sign(result: dict) -> None:
        result["tiny"]["trend"] |= {"value": 0.2, "low95": 0.1, "high95": 0.3}

    def worse(result: dict) -> None:
        result["forecasts"]["folder"]["0.1"]["all"]["median quotient"] = 1.2

    def size_adds(result: dict) -> None:
        for task in result["tasks"]:
            task["p_size"] = 0.01

    def worse_than_classical(result: dict) -> None:
        for row in result["after"]:
            row["median_quotient"] = 1.5

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
        (public_claims.forecasts, "temporal_laboratories.json", worse, claims.NOT),
        (public_claims.one_curve, "typology.json", size_adds, f"{claims.NOT} in some"),
        (
            story_claims.forecasts,
            "temporal_small.json",
            worse_than_classical,
            "better in 0 of 9 kinds (iid), 0 of 9 kinds (ood)",
        ),
    ]
    for make, file, change, verdict in cases:
        before = make().verdict
        changed(file, change)
        assert make().verdict == verdict != before, make


def test_verdicts_of_the_story_turn_with_its_numbers(changed):
    """Each in both directions, from numbers that are clear."""

    def of_law(low: float, high: float, other: tuple[float, float]):
        def law(low: float, high: float) -> dict:
            return {"stable_runs": 8, "value": (low + high) / 2, "low95": low, "high95": high}

        return lambda result: result.update(decay_of_law={"a2": law(low, high), "a0": law(*other), "a1": law(*other)})

    def slopes(slope: float, error: float):
        row = {"split": "iid", "a1 second": slope, "a1 second se": error}
        return lambda result: result.update(converged=[row] * 4)

    def size(low: float, p: float):
        exponent = {"value": low + 0.01, "low95": low, "high95": low + 0.02}
        return lambda result: result["size_law"].update(exponent=exponent, lack_of_fit_p=p)

    def change(low: float, high: float):
        return lambda result: result["returns"].update(change={"value": low, "low95": low, "high95": high})

    def off(variant: str, p: float, reach: float):
        def change(result: dict) -> None:
            for row in result["variants"]:
                row.update(share=0.0, low95=-reach, high95=reach, p_holm=p if row["variant"] == variant else 1.0)

        return change

    cases = [
        (story_claims.rate, of_law(-0.2, -0.1, (-0.05, 0.05)), f"{claims.HOLDS}, a0 and a1 stay"),
        (story_claims.rate, of_law(-0.2, -0.1, (-0.2, 0.05)), f"{claims.HOLDS}, a0 and a1 cannot be told"),
        (story_claims.rate, of_law(-0.2, -0.1, (0.2, 0.3)), f"{claims.HOLDS}, a0 and a1 too"),
        (story_claims.rate, of_law(-0.1, 0.1, (-0.05, 0.05)), claims.NOT),
        (story_claims.separation, slopes(0.01, 0.02), claims.HOLDS),
        (story_claims.separation, slopes(0.3, 0.02), claims.NOT),
        (story_claims.separation, slopes(0.1, 0.2), claims.CANNOT),
        (story_claims.size_law, size(0.03, 0.4), f"{claims.HOLDS} over a factor of 16"),
        (story_claims.size_law, size(0.03, 0.01), claims.NOT),
        (story_claims.size_law, size(-0.01, 0.4), claims.NOT),
        (story_claims.returns, change(-0.02, -0.01), claims.HOLDS),
        (story_claims.returns, change(-0.02, 0.01), claims.CANNOT),
        (story_claims.variants, off("muon", 0.01, 0.05), f"{claims.NOT} for 1 of 6, 6 within 10% everywhere"),
        (story_claims.variants, off("none", 0.01, 0.05), f"{claims.HOLDS} for 6 of 6"),
        (story_claims.variants, off("none", 0.01, 0.2), claims.CANNOT),
    ]
    for make, numbers, verdict in cases:
        changed("story/story.json", numbers)
        assert make().verdict == verdict, make


def test_page_has_a_row_for_each_claim():
    page = claims.page()
    assert page.count("\n| ") == len(claims.ROWS) + 1
