"""Probe a checkpoint for sequences that it was trained on: is what follows a prefix produced exactly, and at what loss?

Trained sequences come from samples of the run up to the checkpoint, and of its parents up to where each was left; controls from
its validation windows, which training never sees; those whose text is in the training data all the same are left out. How often a
sequence was seen is its occurrences in the training data times the passes over its domain by then: the samples of a pass may cut
a sequence, so at most so often.

Texts of one's own can be asked about instead: those that a run has seen and those it has not, which are its controls. Before a
pass is complete, those that stand in the data and may not have been drawn yet are neither, and are left out.
"""

import hashlib
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer

from emergence_train import config as configs
from emergence_train import files
from emergence_train.checkpoint import format as checkpoints
from emergence_train.data import identity
from emergence_train.data.dataset import Dataset
from emergence_train.data.lineage import Stretch, trained_samples
from emergence_train.data.readers import OPENERS
from emergence_train.data.shards import TokenStream
from emergence_train.data.tokenizer import load_file
from emergence_train.data_config import Data
from emergence_train.errors import SURROGATE, InputError
from emergence_train.evaluation.generation import generate
from emergence_train.evaluation.saved_model import load_model
from emergence_train.faults.joined import joined
from emergence_train.input_files import read_text
from emergence_train.models.language_model import LanguageModel
from emergence_train.parallel.mesh import Mesh
from emergence_train.parallel.ranks import on_every_rank

BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64
PIECE = 1 << 22  # tokens hashed at once
HEAD = 256  # characters a token that are read of a long text
ROWS = 16  # sequences in a forward pass
LEAST_CONTROLS = 0.25  # of the controls that there are, which domains of few may cost
UNSEEN = 0.01  # greatest chance of not having been drawn yet of a text that counts as trained


@dataclass(frozen=True)
class Probe:
    """What is asked: `prefix` tokens are given, `continuation` tokens must follow; `items` of each kind, where they are drawn."""

    prefix: int = 32
    continuation: int = 16
    items: int = 200
    seed: int = 0
    least: int = 1  # texts of one's own that were trained on, and that were not; an interval needs 2 of each

    @property
    def length(self) -> int:
        return self.prefix + self.continuation


def probe_run(
    run: Path,
    probe: Probe,
    step: int | None = None,
    log: Callable[[str], None] = print,
    texts: list[str] | None = None,
) -> pd.DataFrame:
    """Probe the run's newest checkpoint, or that of `step`: a row a sequence, as analysis.memorisation reads them.

    Args:
        texts: what is asked about, its first tokens; None: `sequences` drawn from the run's data.

    Raises:
        InputError: the sequences do not fit, the run was not trained here, or has no such checkpoint; no text has surely been
            trained on yet.
    """
    config = configs.load_run(run)
    if config.imported:
        raise InputError(
            f"{run}: is an imported run, whose training data are unknown; probe a run that was trained here"
        )
    folder = checkpoints.newest(run, step)
    step = checkpoints.read_state(folder)["step"]
    with joined(run, config.training.threads, config.faults.silent_seconds) as mesh:
        tokens, seen = on_every_rank(
            lambda: _asked(run, config.data, config.seed, step, config.training.batch, probe, log, texts)
        )
        log(f"{config.name}, step {step}: {(seen > 0).sum()} trained sequences, {(seen == 0).sum()} controls")
        model = on_every_rank(lambda: load_model(config.model, folder).to(mesh.device))
        items = pd.DataFrame(
            {
                "run": config.name,
                "params": config.model.non_embedding_parameters(),
                "step": step,
                "item": [hashlib.blake2b(row.tobytes(), digest_size=8).hexdigest() for row in tokens],
                "seen": seen,
                "extracted": extracted(model, tokens, probe, mesh),
                "loss": continuation_loss(model, tokens, probe, mesh),
                "prefix": probe.prefix,
                "continuation": probe.continuation,
            }
        )
        return items.drop_duplicates("item", ignore_index=True)  # texts may begin alike


def _asked(
    run: Path,
    data: Data,
    seed: int,
    step: int,
    batch: int,
    probe: Probe,
    log: Callable[[str], None],
    texts: list[str] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [n, L] of what is asked about, and (n,) times seen: the same on every rank."""
    dataset = Dataset(data, seed)
    identity.check_text(run, dataset)
    stretches = trained_samples(run, dataset, step * batch, log)
    shortest = min(stretch.dataset.sequence for stretch in stretches) + 1
    if probe.length > shortest:
        raise InputError(
            f"--prefix {probe.prefix} and --continuation {probe.continuation} are longer than the run's samples "
            f"({shortest} tokens); lower one of them"
        )
    if not sum(stretch.samples for stretch in stretches):
        raise InputError(f"{run}: step {step}: nothing that it was trained on is known; give a later --step")
    if texts is None:
        trained, controls, often = sequences(stretches, probe)
        tokens, seen = np.concatenate([trained, controls]), np.concatenate([often, np.zeros(len(controls))])
    else:
        tokens = first_tokens(texts, load_file(run / identity.TOKENIZER), probe)
        tokens, seen = trained_or_not(stretches, tokens, f"{run}: step {step}", log)
        enough_texts(seen, probe.least, f"{run}: step {step}")
    return tokens, seen


def sequences(stretches: list[Stretch], probe: Probe) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(trained [n, L], controls [m, L], times that each trained one was seen [n]): distinct, drawn by the probe's seed.

    Controls are of the validation windows of all `stretches`, of each domain in proportion to its trained sequences; those of a
    domain without windows are left out.

    Raises:
        InputError: no domain that was trained on has windows.
    """
    ends = np.cumsum([stretch.samples for stretch in stretches])
    rng = np.random.default_rng([probe.seed, ends[-1]])
    windows: dict[str, list[np.ndarray]] = {}
    for held_out in {str(stretch.dataset.root): stretch.dataset.windows for stretch in stretches}.values():
        for domain, part in held_out.items():
            windows.setdefault(domain, []).extend(np.asarray(part).astype(np.int64))
    drawn: dict[bytes, np.ndarray] = {}
    domains = []
    for index in rng.integers(0, ends[-1], 4 * probe.items):
        number = int(np.searchsorted(ends, index, side="right"))
        dataset, own = stretches[number].dataset, int(stretches[number].end - ends[number] + index)
        domain = dataset.domains[dataset.sampler[own].domain]
        part = _part(dataset.sample(own), probe, rng)
        if part.tobytes() not in drawn and domain in windows:
            drawn[part.tobytes()] = part
            domains.append(domain)
        if len(drawn) == probe.items:
            break
    if not drawn:
        raise InputError(
            f"{stretches[-1].dataset.root}: holds no validation windows of a domain that was trained on, which are the controls; "
            f"give texts of your own with --texts"
        )
    trained = np.stack(list(drawn.values()))
    heldout = {}
    for name in dict.fromkeys(domains):
        chosen = rng.permutation(len(windows[name]))[: 2 * probe.items]
        heldout[name] = np.unique([_part(windows[name][k], probe, rng) for k in chosen], axis=0)
    times, _ = _times(stretches, np.concatenate([trained, *heldout.values()]))
    often, *in_data = np.split(times, np.cumsum([len(trained), *map(len, heldout.values())])[:-1])
    free = {name: rng.permutation(rows[stands == 0]) for (name, rows), stands in zip(heldout.items(), in_data)}
    kept, controls = _in_proportion(np.array(domains), free)
    return trained[kept], controls, np.maximum(often[kept], 1.0)  # in a sample of the run, so at least once


def _in_proportion(domains: np.ndarray, free: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(which trained sequences, of `domains` (n,), are kept, controls among those that are `free` in each domain).

    Every domain has as many controls for a trained sequence, or their loss would differ by what the domains are. Of domains that
    have few, trained sequences are left out, so that the others keep a part of theirs; domains without any are left out.
    """
    free = {name: rows for name, rows in free.items() if len(rows)} or free
    counts = {name: int((domains == name).sum()) for name in free}
    available = {name: min(len(rows), counts[name]) for name, rows in free.items()}

    def part(ratio: float, name: str) -> tuple[int, int]:  # trained sequences, controls
        most = min(counts[name], int(len(free[name]) / ratio + 1e-9)) if ratio else counts[name]
        return most, round(ratio * most)

    wanted = LEAST_CONTROLS * sum(available.values())
    ratios = sorted(available[name] / counts[name] for name in free)
    ratio = next(ratio for ratio in ratios if sum(part(ratio, name)[1] for name in free) >= wanted)  # the last has all
    kept, controls = [], []
    for name, rows in free.items():
        most, of_these = part(ratio, name)
        kept.append(np.flatnonzero(domains == name)[:most])
        controls.append(rows[:of_these])
    return np.concatenate(kept), np.concatenate(controls)


def _part(sample: np.ndarray, probe: Probe, rng: np.random.Generator) -> np.ndarray:
    begin = int(rng.integers(0, len(sample) - probe.length + 1))
    return sample[begin : begin + probe.length]


def _times(stretches: list[Stretch], tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) times that `tokens` [n, L] were trained on: occurrences in a domain times its passes; and (n,) the chance at most that
    they were not, the occurrences of a stretch independent of each other. What two stretches leave out may be the same."""
    times, unseen = np.zeros(len(tokens)), np.ones(len(tokens))
    distinct, original = np.unique(tokens, axis=0, return_inverse=True)
    for stretch in stretches:
        chance = np.ones(len(distinct))
        for domain, (stream, passes) in enumerate(zip(stretch.dataset.streams, stretch.passes())):
            which, place = occurrences(stream, distinct)
            times += passes * np.bincount(which, minlength=len(distinct))[original]
            np.multiply.at(chance, which, stretch.unseen(domain, place, tokens.shape[1]))
        unseen = np.minimum(unseen, chance[original])
    return times, unseen


def trained_or_not(
    stretches: list[Stretch], tokens: np.ndarray, place: str, log: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Those of `tokens` [n, L] of which it is known whether they were trained on, and times seen [m].

    Raises:
        InputError: none is left that was trained on, since `place` (a run and step) is too early.
    """
    seen, unseen = _times(stretches, tokens)
    known = (unseen <= UNSEEN) | (seen == 0)
    if not known.all():
        left_out = f"{place}: {(~known).sum()} texts of the data may not have been trained on yet"
        if not seen[known].any():
            raise InputError(f"{left_out}, and none surely was; give a later --step")
        log(f"{left_out} and are left out; give a later --step to ask about them")
    return tokens[known], seen[known]


def enough_texts(seen: np.ndarray, least: int, place: str) -> None:
    """Raises InputError where fewer than `least` texts were `seen` (n,) or fewer were not, before a model is loaded."""
    trained = int((seen > 0).sum())
    if min(trained, len(seen) - trained) < least:
        raise InputError(
            f"{place}: {trained} of the texts were trained on and {len(seen) - trained} never, which are the controls; give at "
            f"least {least} of each"
        )


def read_texts(path: Path) -> list[str]:
    """The texts of a JSONL file, compressed as `prepare` reads it or not, an object with `text` a line; distinct, in their order.

    Raises:
        InputError: it cannot be read, or a line has no text.
    """
    try:
        if opener := OPENERS.get(path.suffix):
            with opener(path) as file:
                content = file.read().decode("utf-8-sig").replace("\r\n", "\n")
        else:
            content = read_text(path, encoding="utf-8-sig")
        rows = files.json_lines(content)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read ({reason}); give JSONL, an object with text a line") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise InputError(f"{path}: row {number} has no text; give an object with text a line")
        if SURROGATE.search(row["text"]):
            raise InputError(f"{path}: row {number} has half of a surrogate pair, which is no text; leave it out")
    if not rows:
        raise InputError(f"{path}: has no rows; give the texts to ask about")
    return list(dict.fromkeys(row["text"] for row in rows))


def first_tokens(texts: list[str], tokenizer: Tokenizer, probe: Probe) -> np.ndarray:
    """(n, L) first tokens of each text, int64; raises InputError where a text is too short."""
    # Of a book, say: what follows changes no token so far before it.
    heads = [text[: HEAD * probe.length] for text in texts]
    ids = [encoding.ids[: probe.length] for encoding in tokenizer.encode_batch(heads, add_special_tokens=False)]
    for text, row in zip(texts, ids):
        if len(row) < probe.length:
            raise InputError(
                f"the text {text[:40]!r} has {len(row)} tokens, fewer than --prefix and --continuation together "
                f"({probe.length}); lower one of them or leave the text out"
            )
    return np.array(ids, dtype=np.int64)


def occurrences(stream: TokenStream, sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(which of the distinct `sequences` [n, L], its place in a stream), (m,) each, of all that occur, by a rolling hash modulo
    2^64."""
    length = sequences.shape[1]
    hashes = _hashes(sequences)
    order = np.argsort(hashes)
    wanted = hashes[order]
    which, place = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for begin in range(0, len(stream) - length + 1, PIECE):
        part = stream.read(begin, min(PIECE + length - 1, len(stream) - begin)).astype(np.uint64)
        rolling = _rolling(part, length)
        at = np.searchsorted(wanted, rolling)
        at[at == len(wanted)] = 0
        here = np.flatnonzero(wanted[at] == rolling)
        which.append(order[at[here]])
        place.append(begin + here)
    return np.concatenate(which), np.concatenate(place)


def _hashes(sequences: np.ndarray) -> np.ndarray:
    """(n,) sum of (token + 1) x BASE^place modulo 2^64."""
    powers = np.cumprod(np.full(sequences.shape[1], BASE, np.uint64))
    return ((sequences.astype(np.uint64) + np.uint64(1)) * powers).sum(1, dtype=np.uint64)


def _rolling(tokens: np.ndarray, length: int) -> np.ndarray:
    """The hash of every run of `length` tokens: differences of a running sum, brought to the same power by the inverse."""
    inverse = np.uint64(pow(int(BASE), -1, 2**64))
    powers = np.cumprod(np.full(len(tokens), BASE, np.uint64))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum((tokens + np.uint64(1)) * powers, dtype=np.uint64)])
    count = len(tokens) - length + 1
    back = np.concatenate([np.ones(1, np.uint64), np.cumprod(np.full(count - 1, inverse, np.uint64))])
    return (sums[length:] - sums[:count]) * back


def extracted(model: LanguageModel, tokens: np.ndarray, probe: Probe, mesh: Mesh) -> np.ndarray:
    """(n,) whether greedy generation from the prefix of `tokens` [n, L] gives the continuation exactly."""
    prompts = [row[: probe.prefix].tolist() for row in tokens]
    written = generate(model, prompts, probe.continuation, lambda ids: False, mesh)
    return np.array([ids == row[probe.prefix :].tolist() for ids, row in zip(written, tokens)])


@torch.no_grad()
def continuation_loss(model: LanguageModel, tokens: np.ndarray, probe: Probe, mesh: Mesh) -> np.ndarray:
    """(n,) mean loss of the continuations of `tokens` [n, L], nats a token."""
    model.eval()
    losses = []
    for begin in range(0, len(tokens), ROWS):
        part = torch.from_numpy(tokens[begin : begin + ROWS]).to(mesh.device)
        logits = model(part[:, :-1])
        assert isinstance(logits, torch.Tensor)
        shares = logits[:, probe.prefix - 1 :].float().log_softmax(-1)
        right = shares.gather(-1, part[:, probe.prefix :, None])[..., 0]
        losses += (-right.mean(1)).tolist()
    return np.array(losses)
