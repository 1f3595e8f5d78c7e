"""Whether an exported model computes what the run's model does: its logits beside ours on the same tokens."""

from dataclasses import dataclass
from pathlib import Path

import torch

from emergence_train.models.config import ModelConfig
from emergence_train.models.registry import build_model

SEQUENCES, LENGTH = 2, 64  # tokens drawn evenly from the vocabulary
MOST_PARAMETERS = 2 * 10**9  # beyond which two models in float32 are too much for an export


@dataclass(frozen=True)
class LogitsCompared:
    """max_difference: largest |theirs - ours| over `tokens` positions and the vocabulary; scale: SD of ours."""

    max_difference: float
    scale: float
    tokens: int


def compare(model: ModelConfig, weights: dict[str, torch.Tensor], exported: Path) -> LogitsCompared | str:
    """Compare the run's model with the exported directory as transformers loads it, both in float32; or why it was not done."""
    if model.parameters() > MOST_PARAMETERS:
        return f"not compared: {model.parameters():,} parameters are loaded twice for it"
    try:
        import transformers
    except ImportError:
        return "not compared: transformers is not installed"
    ours = build_model(model)
    ours.load_state_dict(weights, strict=False)  # a tied matrix is there under its first name alone
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    length = min(LENGTH, model.max_sequence)
    tokens = torch.randint(0, model.vocabulary, (SEQUENCES, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = ours.eval()(tokens).float()
        got = theirs.eval()(tokens, use_cache=False).logits.float()  # some fail with a cache of their own making
    return LogitsCompared(float((got - wanted).abs().max()), float(wanted.std()), tokens.numel())


def in_words(compared: LogitsCompared | str) -> str:
    """For the log and the card."""
    if isinstance(compared, str):
        return compared
    return (
        f"differ from the run's by {compared.max_difference:.2g} at most over {compared.tokens} tokens "
        f"(their standard deviation is {compared.scale:.2g})"
    )
