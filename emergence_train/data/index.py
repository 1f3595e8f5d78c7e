"""The schema of dataset.json, checked before anything is read through it."""

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator


def _inside(name: object) -> str:
    if not isinstance(name, str) or not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise ValueError("must be a path inside the directory")
    return name


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")  # later versions may add keys


class File(_Strict):
    file: Annotated[str, PlainValidator(_inside)]
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class TokenizerEntry(_Strict):
    vocabulary: int = Field(ge=1, lt=2**32)
    fingerprint: str


class Shard(_Strict):
    tokens: File
    documents: File


class Domain(_Strict):
    shards: list[Shard]


class WindowsEntry(File):
    sequences: int = Field(ge=0)
    ranges: dict[str, Annotated[int, Field(ge=0)]]


class ValidationEntry(_Strict):
    sets: dict[str, WindowsEntry]


class Index(_Strict):
    format: Literal[1]
    sequence: int = Field(ge=1)
    dtype: Literal["<u2", "<u4"]
    tokenizer: TokenizerEntry
    domains: dict[str, Domain]
    validation: ValidationEntry
    trained: bool = True  # False: for validation alone, of an imported run; training text may be missing

    @model_validator(mode="after")
    def _sizes(self) -> "Index":
        width = np.dtype(self.dtype).itemsize
        for name, windows in self.validation.sets.items():
            if windows.bytes != windows.sequences * (self.sequence + 1) * width:
                raise ValueError(f"validation set {name!r} has {windows.bytes} bytes for {windows.sequences} sequences")
            if max(windows.ranges.values(), default=0) > windows.sequences:
                raise ValueError(f"validation set {name!r} has fewer sequences than its ranges")
        if not any(count for windows in self.validation.sets.values() for count in windows.ranges.values()):
            raise ValueError("there are no validation sequences")
        for name, domain in self.domains.items():
            if any(shard.tokens.bytes % width for shard in domain.shards):
                raise ValueError(f"domain {name!r} has a shard that is not a whole number of tokens")
        return self
