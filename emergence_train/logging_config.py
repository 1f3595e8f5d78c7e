"""The sections of what a run shows of itself: on the console, in trackers, as text. None of them changes what is trained."""

from typing import Literal

from pydantic import Field, ValidationError

from emergence_train.errors import InputError
from emergence_train.section import Section


class Logging(Section):
    console_seconds: float = Field(default=5.0, ge=0, description="between console lines")
    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        default="auto", description="auto: online with credentials, else offline"
    )
    wandb_project: str = Field(default="emergence-train", description="the project in Weights & Biases")


class Samples(Section):
    """Text that the model writes at every checkpoint, to be looked at: in metrics.jsonl, `watch` and Weights & Biases."""

    prompts: list[str] = Field(default=[], max_length=64, description="what the texts begin with; none: no text")
    tokens: int = Field(default=48, ge=1, description="tokens of a text, at most")
    temperature: float = Field(default=0.8, ge=0, description="of the draws; 0: the likeliest token each time")
    seed: int = Field(default=0, ge=0, lt=2**40, description="seed of the draws")


def sampling(prompts: list[str], tokens: int, temperature: float, seed: int) -> Samples:
    """The section of a command's own arguments; InputError where one is out of its bounds."""
    try:
        return Samples(prompts=prompts, tokens=tokens, temperature=temperature, seed=seed)
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']} (got {problem['input']!r})") from None
