"""The section of a configuration that says where the checkpoints of an imported run come from."""

from typing import Literal

from pydantic import Field

from emergence_train.section import Section


class Imported(Section):
    """Where the checkpoints of an imported run come from. It was trained elsewhere: its sections training and checkpoints
    describe nothing."""

    format: Literal["hf"] = Field(default="hf", description="what was imported")
    sources: dict[str, str] = Field(description="a directory or name, with its revision, of each step")
    begin_token: int | None = Field(
        default=None,
        ge=0,
        description="id of the token before every sequence, as the model's tokenizer has it; null: none",
    )
    tokens_per_step: int = Field(default=0, ge=0, description="tokens of an optimizer step; 0: not known")
