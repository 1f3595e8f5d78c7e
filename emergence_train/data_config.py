"""The sections of what a run is trained on: sources, tokenizer, held-out sequences."""

from pydantic import Field, model_validator

from emergence_train.section import NAME, Section


class Source(Section):
    """The source of one domain's text: exactly one of `files`, `hub`, `sample` and `planted`."""

    domain: str = Field(pattern=NAME, description="name of the domain, in logs and tables")
    files: list[str] | None = Field(
        default=None,
        description="paths or globs: .txt, .md, .jsonl, .csv, .tsv (also .gz, .bz2, .xz, .zst), .parquet",
    )
    hub: str | None = Field(default=None, description="a Hugging Face data set, streamed")
    subset: str | None = Field(default=None, description="the hub data set's configuration name")
    hub_split: str = Field(default="train", description="the hub data set's split")
    sample: str | None = Field(default=None, description="a domain of the embedded sample")
    planted: str | None = Field(
        default=None,
        description="a planted skill, as text generated from a fixed seed (docs/how-to/data.md has them)",
    )
    text_field: str = Field(default="text", description="field or column that holds the text; dotted for nested ones")
    weight: float = Field(
        default=1.0, ge=0, description="share of training tokens, relative; 0 keeps it out of training"
    )
    in_iid: bool = Field(
        default=True,
        description="whether the iid set has its share of this domain; false for what is trained on and asked in tasks, but no "
        "part of the loss that the analyses follow",
    )
    own_sequences: int | None = Field(
        default=None, ge=0, description="sequences in this domain's own set; None: validation.domain_sequences"
    )
    limit_documents: int | None = Field(
        default=None, ge=1, description="read at most this many documents; None: all, and 1,000 of a planted skill"
    )
    document_characters: int | None = Field(
        default=None,
        ge=100,
        description="a longer text file becomes several documents, cut at blank lines where there are any; default: some 128 "
        "documents where a source is fewer than 32 text files, else 1,000,000 characters",
    )

    @model_validator(mode="after")
    def _one_source(self) -> "Source":
        given = [name for name in ("files", "hub", "sample", "planted") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                f"domain {self.domain!r} must have exactly one of files, hub, sample and planted (has: {given})"
            )
        if self.domain in ("train", "iid", "ood"):
            raise ValueError(f"domain name {self.domain!r} is taken by a split of the tables; choose another")
        return self


class Tokenizer(Section):
    """Trained here (`vocab_size`), or loaded: a tokenizer.json, or a hub name."""

    vocab_size: int | None = Field(default=None, ge=257, description="train a byte-level BPE of this size")
    file: str | None = Field(default=None, description="a tokenizer.json")
    hub: str | None = Field(default=None, description="a Hugging Face tokenizer's name")
    end_of_text: str | None = Field(
        default=None, description="the end-of-text token, where its name is not a common one"
    )
    train_bytes: int = Field(default=50_000_000, ge=1000, description="text read to train it")

    @model_validator(mode="after")
    def _one_origin(self) -> "Tokenizer":
        given = [name for name in ("vocab_size", "file", "hub") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of vocab_size, file and hub (has: {given})")
        return self


class Validation(Section):
    """Held-out sequences, one longer than `sequence` so that every position has a target."""

    sequences: int = Field(
        default=256, ge=1, description="sequences in the iid set, distributed over domains by weight"
    )
    domain_sequences: int = Field(default=64, ge=0, description="sequences in each domain's own set, at most")
    ood_sequences: int = Field(default=256, ge=0, description="sequences in the ood set")
    fraction: float = Field(default=0.02, gt=0, lt=1, description="share of documents held out, by hash")


class Data(Section):
    """The prepared data and what they are prepared from."""

    path: str = Field(description="the prepared directory")
    sequence: int = Field(ge=2, description="tokens a sequence")
    sources: list[Source] = Field(min_length=1, description="the training mixture, one entry per domain")
    ood: list[Source] = Field(default=[], description="out-of-distribution sources, for validation only")
    tokenizer: Tokenizer = Field(description="trained here, or loaded")
    validation: Validation = Field(default=Validation(), description="the held-out sets")
    shard_tokens: int = Field(default=100_000_000, ge=1000, description="tokens per shard file")
    bad_rows: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="share of a source's rows without usable text that may be skipped; more is an error",
    )
    workers: int = Field(default=0, ge=0, description="tokenizing processes; 0: one per CPU")

    @model_validator(mode="after")
    def _domains(self) -> "Data":
        names = [source.domain for source in [*self.sources, *self.ood]]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"domain {twice[0]!r} is listed twice; list its files in one source")
        if not any(source.weight > 0 for source in self.sources):
            raise ValueError("every source has weight 0; give at least one a positive weight")
        if not any(source.weight > 0 and source.in_iid for source in self.sources):
            raise ValueError("no source with a weight above 0 is in the iid set; leave in_iid out of one of them")
        return self
