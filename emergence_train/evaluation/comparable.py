"""Losses that are comparable between tokenizers: bits per byte, and unigram-normalised perplexity."""

import math

import numpy as np

from emergence_train.data.dataset import Dataset

UNIGRAM_TOKENS = 20_000_000  # training tokens of each domain counted for the unigram model


def bits_per_byte(nats_per_token: float, tokens: int, text_bytes: int) -> float:
    """Convert nats per token to bits per byte of the same text: nats x tokens / (bytes x ln 2)."""
    return nats_per_token * tokens / (text_bytes * math.log(2))


def log_unigram_normalised_perplexity(nats_per_token: float, unigram_nats_per_token: float) -> float:
    """log PPLu = CE(model) - CE(unigram), nats per token (Roh et al., arXiv 2011.13220): 0 for a model that knows only
    token frequencies, below 0 for a better one."""
    return nats_per_token - unigram_nats_per_token


def unigram_cross_entropy(counts: np.ndarray, targets: np.ndarray) -> float:
    """Nats per token of `targets` (n,) under frequencies from `counts` (V,), each count raised by 1."""
    smoothed = np.asarray(counts, float) + 1
    return float(np.mean(math.log(smoothed.sum()) - np.log(smoothed[targets])))


def unigram_losses(dataset: Dataset) -> dict[str, float]:
    """Cross-entropy of each validation split under the unigram model of the training mixture, nats per token.

    Frequencies are those of the domains' first UNIGRAM_TOKENS training tokens, mixed by the training weights. Nothing where a
    domain has no training text, as of an imported run.
    """
    if not all(map(len, dataset.streams)):
        return {}
    weights = {domain: dataset.index["domains"][domain]["weight"] for domain in dataset.domains}
    counts = np.zeros(dataset.vocabulary)
    for domain, stream in zip(dataset.domains, dataset.streams):
        ids = stream.read(0, min(len(stream), UNIGRAM_TOKENS))
        share = weights[domain] / sum(weights.values())
        counts += share * UNIGRAM_TOKENS * np.bincount(ids, minlength=dataset.vocabulary) / len(ids)
    targets: dict[str, list[np.ndarray]] = {}
    for segment in dataset.segments():
        rows = dataset.windows[segment.domain][segment.begin : segment.end, 1:].ravel()
        for split in segment.splits:
            targets.setdefault(split, []).append(rows)
    return {split: unigram_cross_entropy(counts, np.concatenate(parts)) for split, parts in targets.items()}


def comparable(dataset: Dataset, losses: dict[str, float], unigram: dict[str, float]) -> dict[str, dict[str, float]]:
    """{"bits_per_byte": {split: ...}, "log_pplu": {split: ...}} of validation losses in nats per token."""
    splits = dataset.index["validation"]["splits"]
    sizes = {name: (splits[name]["sequences"] * dataset.sequence, splits[name]["bytes"]) for name in splits}
    return {
        "bits_per_byte": {n: round(bits_per_byte(loss, *sizes[n]), 6) for n, loss in losses.items() if n in sizes},
        "log_pplu": {
            n: round(log_unigram_normalised_perplexity(loss, unigram[n]), 6)
            for n, loss in losses.items()
            if n in unigram
        },
    }
