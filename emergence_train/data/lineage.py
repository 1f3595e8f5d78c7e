"""Which samples a run was trained on: its own, and before them those of the run that it began from, which parent.json names."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emergence_train import config as configs
from emergence_train.data import identity
from emergence_train.data.dataset import Dataset
from emergence_train.data.sampling import quotas
from emergence_train.data_config import Data
from emergence_train.errors import InputError
from emergence_train.input_files import read_text

FILE = "parent.json"


def parent_of(run: Path) -> dict | None:
    """What parent.json says of a run that began from another's state: {"run", "path", "step", "tokens", "first_step",
    "skipped_samples", "same_samples"}.

    `first_step` is the child's number of the parent's last step: its own begin after it. `skipped_samples`: (first, last) of what
    the parent's rewinds had left out until then. `same_samples`: whether all before were of the child's own order.
    """
    try:
        return json.loads(read_text(run / FILE))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{run / FILE}: cannot be read ({' '.join(str(error).split())}); restore it") from None


def same_samples(run: Path, seed: int, data: Data, dataset: Dataset) -> bool:
    """Whether a sample's number means the same text in `run`, of `seed` and `data`, as in `dataset`."""
    domains = [source.domain for source in data.sources if source.weight > 0]
    shares = quotas([source.weight for source in data.sources if source.weight > 0])
    before = (seed, data.sequence, domains, shares)
    now = (dataset.sampler.seed, dataset.sequence, dataset.domains, dataset.sampler.quotas)
    known = identity.read(run) or {}
    return before == now and known.get("data") in (None, identity.digest(dataset.index))


@dataclass(frozen=True)
class Stretch:
    """Samples `begin` to `end` of a data set's order."""

    dataset: Dataset
    begin: int
    end: int

    @property
    def samples(self) -> int:
        return self.end - self.begin

    def passes(self) -> np.ndarray:
        """(domains,) passes over each."""
        first, last = (np.array(self.dataset.sampler.epochs(at)) for at in (self.begin, self.end))
        return last - first

    def unseen(self, domain: int, place: np.ndarray, length: int) -> np.ndarray:
        """(n,) chance that none of the samples has the `length` tokens from `place` (n,) of a domain's stream: a pass draws its
        windows in an order of its own, taken to be independent, and leaves out what lies before and behind them."""
        sampler = self.dataset.sampler
        begin, end = (sampler.epochs(at)[domain] for at in (self.begin, self.end))
        chance = np.ones(len(place))
        for epoch in range(math.floor(begin), math.ceil(end)):
            first, last = sampler.span(domain, epoch)
            held = (place >= first) & (place + length <= last)
            chance[held] *= 1 - (min(end, epoch + 1) - max(begin, epoch))
            if not chance.any():
                break
        return chance


def trained_samples(run: Path, dataset: Dataset, samples: int, log: Callable[[str], None]) -> list[Stretch]:
    """The samples behind a state of `run` after the first `samples` of its `dataset`, those of its parents first.

    Of an imported parent they are unknown, which is logged.

    Raises:
        InputError: a parent's directory or data are needed and missing.
    """
    known = parent_of(run)
    if known is None or known.get("same_samples"):
        return [Stretch(dataset, 0, samples)]
    path = Path(known["path"])
    if not path.is_dir():
        raise InputError(
            f"{run}: began from {path}@{known['step']}, which is missing, and its samples up to there are unknown; restore it"
        )
    parent = configs.load_run(path)
    begin = known["tokens"] // dataset.sequence
    if parent.imported:
        log(
            f"{run}: began from {path}, an imported run, whose training data are unknown; only what was trained on since then "
            "counts"
        )
        return [Stretch(dataset, begin, samples)]
    theirs = Dataset(parent.data, parent.seed)
    identity.check_text(path, theirs)
    before = trained_samples(path, theirs, known["tokens"] // theirs.sequence, log)
    if same_samples(path, parent.seed, parent.data, dataset):
        return [*before[:-1], Stretch(dataset, before[-1].begin, samples)]
    return [*before, Stretch(dataset, begin, samples)]
