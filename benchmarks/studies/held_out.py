"""Losses of a saved model on many held-out sequences, more than a run evaluates at its checkpoints."""

from pathlib import Path

import numpy as np
import torch
from commands import command

from emergence_train.config import load
from emergence_train.data.dataset import Dataset
from emergence_train.models.language_model import LanguageModel


def windows(work: Path, config: Path, data: str, counts: dict[str, int]) -> dict[str, np.ndarray]:
    """Prepare the held-out documents of `config` in work/data/`data`-more, cut by the tokenizer of work/data/`data`; token ids
    (n, T + 1) of each split, at most `counts` of them."""
    named = {"iid": "data.validation.sequences", "ood": "data.validation.ood_sequences"}
    words = [f"{named[split]}={count}" for split, count in counts.items()]
    words += ["data.validation.domain_sequences=0"]
    words += [f"data.tokenizer={{file: data/{data}/tokenizer.json}}"]
    command(work, "prepare", str(config), f"data.path=data/{data}-more", *words)
    dataset = Dataset(load(config, [f"data.path={work / 'data' / f'{data}-more'}", *words]).data, 0)
    return {
        split: np.concatenate(
            [dataset.windows[part.domain][part.begin : part.end] for part in dataset.segments() if split in part.splits]
        )
        for split in counts
    }


@torch.no_grad()
def token_losses(model: LanguageModel, windows: np.ndarray) -> np.ndarray:
    """(n, T) nats of the targets of `windows` (n, T + 1), float64."""
    model.eval()
    batches = [torch.from_numpy(windows[k : k + 64].astype(np.int64)) for k in range(0, len(windows), 64)]
    return np.concatenate(
        [model(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()).token_loss.double() for ids in batches]
    )


def position_sums(losses: np.ndarray) -> dict[str, np.ndarray]:
    """Of (n, T) losses the columns of a positions table, without its keys."""
    return {
        "position": np.arange(1, losses.shape[1] + 1),
        "count": np.full(losses.shape[1], len(losses)),
        "loss_sum": losses.sum(0),
        "loss_sq_sum": (losses**2).sum(0),
        "correct": np.zeros(losses.shape[1], int),
    }
