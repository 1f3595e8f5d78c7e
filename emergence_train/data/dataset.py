"""A prepared data set: batches of training samples by global index, and the validation windows."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from emergence_train.data import shards, tokenizer
from emergence_train.data.index import Index
from emergence_train.data.sampling import Sampler
from emergence_train.data_config import Data
from emergence_train.errors import InputError
from emergence_train.input_files import read_text


@dataclass(frozen=True)
class Segment:
    """Validation windows that belong to the same splits: rows [begin, end) of a domain's file."""

    domain: str
    begin: int
    end: int
    splits: tuple[str, ...]


class Dataset:
    """A prepared data set opened for training with the configuration's weights and sequence length.

    `verify=True` compares every file with its checksum (one rank does this for all).
    """

    def __init__(self, data: Data, seed: int, *, verify: bool = True) -> None:
        self.root = Path(data.path)
        self.index = load_index(self.root)
        self.sequence = data.sequence
        self.vocabulary = self.index["tokenizer"]["vocabulary"]
        self.fingerprint = self.index["tokenizer"]["fingerprint"]
        self._check(data)
        if verify:
            check_tokenizer(self.root, self.index)
            shards.verify(self.root, self._entries(), self.root / "verified.json")
        dtype = np.dtype(self.index["dtype"])
        self.domains = [source.domain for source in data.sources if source.weight > 0]
        self.streams = [
            shards.TokenStream(self.root, self.index["domains"][domain]["shards"], dtype) for domain in self.domains
        ]
        self._weights = [source.weight for source in data.sources if source.weight > 0]
        self._seed = seed
        if self.index.get("trained", True):
            self.sampler  # noqa: B018  raises where there is too little text
        self.windows = {
            domain: np.memmap(self.root / entry["file"], dtype=dtype, mode="r").reshape(entry["sequences"], -1)
            for domain, entry in self.index["validation"]["sets"].items()
        }

    @functools.cached_property
    def sampler(self) -> Sampler:
        """Which window a sample is. Raises InputError where a domain has less training text than a sequence."""
        return Sampler([len(stream) for stream in self.streams], self._weights, self.sequence, self._seed)

    def sample(self, index: int) -> np.ndarray:
        """The `sequence + 1` tokens of global sample `index`, int64."""
        window = self.sampler[index]
        return self.streams[window.domain].read(window.start, self.sequence + 1)

    def document_ids(self, index: int) -> np.ndarray:
        """For each of those tokens the number of its document within the sample, int64."""
        window = self.sampler[index]
        return self.streams[window.domain].document_ids(window.start, self.sequence + 1)

    def segments(self) -> list[Segment]:
        """The validation windows grouped so that each group's sums go to the same splits."""
        segments = []
        for domain, entry in self.index["validation"]["sets"].items():
            begin = 0
            for end in sorted(set(entry["ranges"].values()) - {0}):
                splits = tuple(split for split, count in entry["ranges"].items() if count >= end)
                segments.append(Segment(domain, begin, end, splits))
                begin = end
        return segments

    @property
    def a_shard(self) -> Path:
        """A file of training tokens."""
        return self.root / self.index["domains"][self.domains[0]]["shards"][0]["tokens"]["file"]

    def _check(self, data: Data) -> None:
        if self.index["sequence"] != data.sequence:
            raise InputError(
                f"{self.root}: was prepared for sequences of {self.index['sequence']} tokens, data.sequence "
                f"is {data.sequence}; prepare it again under another data.path"
            )
        for source in data.sources:
            if source.domain not in self.index["domains"]:
                raise InputError(
                    f"{self.root}: has no domain {source.domain!r} (it has "
                    f"{', '.join(self.index['domains'])}); prepare again under another data.path"
                )
            trained = source.weight > 0 and self.index.get("trained", True)
            if trained and not self.index["domains"][source.domain]["shards"]:
                raise InputError(
                    f"{self.root}: holds no training text of the domain {source.domain!r}; set its weight to 0, or prepare "
                    f"more of it under another data.path"
                )

    def _entries(self) -> list[dict]:
        parts = [
            shard[kind]
            for entry in self.index["domains"].values()
            for shard in entry["shards"]
            for kind in ("tokens", "documents")
        ]
        return parts + list(self.index["validation"]["sets"].values())


def load_index(root: Path) -> dict:
    try:
        index = json.loads(read_text(root / "dataset.json"))
        Index.model_validate(index)
    except FileNotFoundError:
        raise InputError(
            f"{root}: is not a prepared data set; run `emergence-train prepare` first, or this where it lies"
        ) from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "it"
        raise InputError(
            f"{root / 'dataset.json'}: {' '.join((where + ': ' + problem['msg']).split())}; it is of another "
            f"version or altered: delete {root} and prepare again"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{root / 'dataset.json'}: cannot be read ({reason}); delete {root} and prepare again"
        ) from None
    return index


def check_tokenizer(root: Path, index: dict) -> None:
    """Raise InputError where tokenizer.json is not the one that made the shards."""
    tokenizer.load_file(root / "tokenizer.json")  # raises where the file itself is damaged
    fingerprint = tokenizer.fingerprint(root / "tokenizer.json")
    wanted = index["tokenizer"]["fingerprint"]
    if fingerprint != wanted:
        raise InputError(
            f"{root / 'tokenizer.json'}: does not match the shards (its fingerprint is {fingerprint}, theirs "
            f"{wanted}); restore it, or delete {root} and prepare again"
        )
