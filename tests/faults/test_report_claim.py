"""Which rank reports where there is no store to agree over, also on a file system that answers late."""

import os
import threading

import pytest

from emergence_train.faults import report_claim
from emergence_train.faults.flight_recorder import STACKS
from emergence_train.faults.report_claim import PREFIX, claim, forget_older


@pytest.fixture
def slow_open(monkeypatch):
    """A function that lets an open of claims, which waits until then, go ahead, and waits for the claim's thread to end."""
    answer, opened = threading.Event(), os.open

    def wait(path, *flags):
        if PREFIX in str(path):
            assert answer.wait(20)
        return opened(path, *flags)

    def go_ahead():
        claiming = [thread for thread in threading.enumerate() if thread.name == "report-claim"]
        answer.set()
        for thread in claiming:
            thread.join(20)
            assert not thread.is_alive()

    monkeypatch.setattr(os, "open", wait)
    monkeypatch.setattr(report_claim, "SECONDS", 0.05)
    monkeypatch.setattr(report_claim, "AGAIN", 0.01)
    yield go_ahead
    answer.set()


def test_the_first_to_claim_reports_fallback_or_not(tmp_path):
    assert claim(tmp_path, "start", 3, fallback=False) and not claim(tmp_path, "start", 1, fallback=True)
    assert claim(tmp_path, "another", 1, fallback=True)
    assert (tmp_path / STACKS / f"{PREFIX}start").read_text() == "rank 3\n"


def test_a_claim_that_is_granted_late_is_taken_back(tmp_path, slow_open):
    """Its rank has decided to be silent, so the next one may report."""
    assert not claim(tmp_path, "start", 3, fallback=False)
    slow_open()
    assert not list((tmp_path / STACKS).iterdir())
    assert claim(tmp_path, "start", 1, fallback=True)


def test_a_fallbacks_late_claim_stays(tmp_path, slow_open):
    """It has reported, which is enough."""
    assert claim(tmp_path, "start", 1, fallback=True)
    slow_open()
    assert not claim(tmp_path, "start", 3, fallback=False) and not claim(tmp_path, "start", 2, fallback=True)
    assert (tmp_path / STACKS / f"{PREFIX}start").read_text() == "rank 1\n"


def test_a_claim_that_is_being_taken_back_silences_no_one(tmp_path):
    """A rank that comes between another's late claim and its removal tries again; one that stays is another's."""
    path = tmp_path / STACKS / f"{PREFIX}start"
    path.parent.mkdir()
    path.touch()
    removal = threading.Timer(0.05, path.unlink)
    removal.start()
    assert claim(tmp_path, "start", 3, fallback=False)
    removal.join()
    assert path.read_text() == "rank 3\n" and not claim(tmp_path, "start", 4, fallback=False)


def test_a_start_removes_the_claims_of_others(tmp_path):
    forget_older(tmp_path, "new")  # of a run without any
    assert claim(tmp_path, "old", 1, fallback=True) and claim(tmp_path, "new", 1, fallback=True)
    (tmp_path / STACKS / "rank-0.txt").write_text("stack")
    forget_older(tmp_path, "new")
    assert sorted(path.name for path in (tmp_path / STACKS).iterdir()) == ["rank-0.txt", f"{PREFIX}new"]
