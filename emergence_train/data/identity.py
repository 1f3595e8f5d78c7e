"""The identity of a run's data: a digest and the tokenizer, saved in the run and compared on resume, evaluate and export.

    data.json         the digest, the tokenizer's fingerprint, the end-of-text token and the windows of each validation split
    tokenizer.json    the tokenizer itself, so that a run can be evaluated and exported without its data

The digest is computed from the checksums in the data set's index, so moving the data does not change it.
"""

import hashlib
import json
from pathlib import Path

from emergence_train import files
from emergence_train.data.dataset import Dataset, load_index
from emergence_train.data.tokenizer import fingerprint
from emergence_train.errors import InputError
from emergence_train.input_files import read_text

FILE = "data.json"
TOKENIZER = "tokenizer.json"


def digest(index: dict) -> str:
    """16 hex digits for the shards, the validation windows and the tokenizer of a dataset.json."""
    entries = [
        (domain, kind, shard[kind]["sha256"])
        for domain, entry in index["domains"].items()
        for shard in entry["shards"]
        for kind in ("tokens", "documents")
    ]
    entries += [(domain, "validation", entry["sha256"]) for domain, entry in index["validation"]["sets"].items()]
    named = [index["sequence"], index["tokenizer"]["fingerprint"], sorted(entries)]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]


def splits(index: dict) -> dict[str, dict[str, int]]:
    """Of each validation split the windows that it has of each domain, which the digest leaves out: a domain's file serves its
    own split and iid."""
    windows: dict[str, dict[str, int]] = {}
    for domain, entry in sorted(index["validation"]["sets"].items()):
        for split, count in sorted(entry["ranges"].items()):
            windows.setdefault(split, {})[domain] = count
    return windows


def check_tokenizer(run: Path, dataset: Dataset) -> dict | None:
    """Return `read(run)`; raise InputError where the run was trained with another tokenizer than `dataset`'s."""
    known = read(run)
    if known is not None and known["vocabulary"] != dataset.fingerprint:
        raise InputError(
            f"{run}: was trained with the tokenizer {known['vocabulary']}, and {dataset.root} has {dataset.fingerprint}; set "
            f"data.path to data of its tokenizer, or train under another name"
        )
    return known


def check_text(run: Path, dataset: Dataset) -> dict | None:
    """Return `read(run)`; raise InputError where `run` was trained on other data or with another tokenizer than `dataset`'s."""
    known = check_tokenizer(run, dataset)
    if known is None:
        return None
    actual = digest(dataset.index)
    if known["data"] != actual:
        raise InputError(
            f"{run}: was trained on the data {known['data']}, and {dataset.root} holds {actual}; set data.path to the data it "
            f"was trained on, or train under another name"
        )
    return known


def check(run: Path, dataset: Dataset) -> None:
    """`check_text`, and raise InputError where the run has other validation splits."""
    before, now = (check_text(run, dataset) or {}).get("splits"), splits(dataset.index)
    if isinstance(before, dict) and before != now:
        split = min(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        raise InputError(
            f"{run}: was validated on {_windows(before, split)}, and {dataset.root} has {_windows(now, split)}; set data.path "
            f"to the data it was trained on, or train under another name"
        )


def _windows(of_splits: dict[str, dict[str, int]], split: str) -> str:
    shares = ", ".join(f"{count} of {domain}" for domain, count in of_splits.get(split, {}).items())
    return f"{split} sequences {shares}" if shares else f"no {split} sequences"


def keep(run: Path, dataset: Dataset) -> None:
    """`check`, then write the identity and the tokenizer into the run."""
    check(run, dataset)
    if not (run / TOKENIZER).exists():
        files.write_bytes(run / TOKENIZER, (dataset.root / "tokenizer.json").read_bytes())
    wanted = {
        "data": digest(dataset.index),
        "vocabulary": dataset.fingerprint,
        "end_of_text": dataset.index["tokenizer"]["end_of_text"],
        "splits": splits(dataset.index),
    }
    if not (run / FILE).is_file():
        files.write_json(run / FILE, wanted)


def read(run: Path) -> dict | None:
    """{"data", "vocabulary", "end_of_text"} of a run; None where it has none."""
    try:
        identity = json.loads(read_text(run / FILE))
        if isinstance(identity, dict) and all(isinstance(identity.get(key), str) for key in ("data", "vocabulary")):
            return identity
        raise ValueError("no data or vocabulary in it")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{run / FILE}: cannot be read ({' '.join(str(error).split())}); restore it") from None


def tokenizer_of(run: Path, data: Path) -> tuple[Path, int]:
    """Return (tokenizer.json that the run was trained with, its end-of-text token): the run's own, else that of its data.

    Raises:
        InputError: the run has none, and its data are missing or have another.
    """
    known = read(run) or {}
    if (run / TOKENIZER).exists() and "end_of_text" in known:
        path, end = run / TOKENIZER, known["end_of_text"]
    elif (data / "dataset.json").is_file():
        path, end = data / "tokenizer.json", load_index(data)["tokenizer"]["end_of_text"]
    else:
        raise InputError(
            f"{run}: has no tokenizer.json, and {data} is not the data set it was trained on; "
            f"run this in the directory that its data.path is relative to"
        )
    if (wanted := known.get("vocabulary")) not in (None, actual := fingerprint(path)):
        raise InputError(f"{path}: is the tokenizer {actual}, and {run} was trained with {wanted}; restore it")
    return path, end
