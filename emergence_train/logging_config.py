"""The sections of what a run shows of itself: on the console, in trackers, as text. None of them changes what is trained."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError

from emergence_train.errors import InputError
from emergence_train.section import Section


class Wandb(Section):
    """Weights & Biases. The mode alone may stand for the section: `logging.wandb: offline`. What is not given here is taken from
    W&B's own environment variables (WANDB_PROJECT, WANDB_ENTITY, WANDB_RUN_GROUP, WANDB_TAGS, ...)."""

    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        default="auto", description="auto: online with credentials, else offline"
    )
    project: str | None = Field(default=None, description="the project; none: WANDB_PROJECT, else emergence-train")
    entity: str | None = Field(default=None, description="the user or team that the project is of")
    group: str | None = Field(default=None, description="runs of one experiment, shown together")
    tags: list[str] = Field(default=[], description="words to find the run by")
    notes: str | None = Field(default=None, description="a remark on the run")
    job_type: str | None = Field(default=None, description="what kind of run it is, as pretrain or sweep")
    system: bool = Field(default=True, description="also send use of CPU, GPU, memory, disk and network")
    checkpoints: bool = Field(
        default=False, description="also an artifact for each saved state that names its directory; nothing is uploaded"
    )


class Logging(Section):
    console_seconds: float = Field(default=5.0, ge=0, description="between console lines")
    every_rank: bool = Field(
        default=False, description="each rank's lines and warnings also to logs/rank-N.log in the run, 8 MB at most"
    )
    wandb: Annotated[Wandb, BeforeValidator(lambda value: {"mode": value} if isinstance(value, str) else value)] = (
        Field(default=Wandb(), description="Weights & Biases: a mode, or its section")
    )
    tensorboard: bool = Field(
        default=False, description="write TensorBoard's event files too, to tensorboard/ in the run"
    )


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
