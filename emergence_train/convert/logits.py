"""Whether an imported or exported model computes what it was made from: the logits of both on the same tokens.

Shapes: B sequences, T tokens, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from emergence_train.checkpoint.shards import Shards
from emergence_train.errors import RunError
from emergence_train.models.config import ModelConfig
from emergence_train.models.language_model import LanguageModel
from emergence_train.models.registry import build_model

SEQUENCES, LENGTH = 2, 64  # tokens drawn evenly from the vocabulary
MOST_PARAMETERS = 2 * 10**9  # beyond which two models in float32 are too much for an export
ORIGINAL = "original_logits"  # the key, in an imported checkpoint, of what the original gives
NOISE = 1e-3  # of the same weights, in SD of the logits: right ones have 1e-5, those rounded to bfloat16 2e-3
# Sharp attention amplifies rounding: times what the last bit of every weight makes; right models have about 1
ROUNDINGS = 10


@dataclass(frozen=True)
class LogitsCompared:
    """max_difference: largest |theirs - wanted| over `tokens` positions and the vocabulary; scale: SD of the wanted.

    reference: whose logits are wanted, those of the "run" or of the "original" that was imported. rounding: how far our logits
    move with the last bit of every weight; None where the difference is so small that it is not computed.
    """

    max_difference: float
    scale: float
    tokens: int
    reference: str
    rounding: float | None = None

    @property
    def is_noise(self) -> bool:
        """Whether both are the same model; where a difference is NaN they aren't."""
        return self.max_difference <= max(NOISE * self.scale, ROUNDINGS * (self.rounding or 0.0))


def original_logits(model: ModelConfig, theirs: torch.nn.Module) -> Tensor | None:
    """Logits [B, 1, V] of a model that is imported, in float32, for its checkpoint; None of one that is too large. Of the last
    position, which has seen all before it."""
    if model.parameters() > MOST_PARAMETERS:
        return None
    return _logits(model, _their_logits(theirs))[:, -1:].clone()


def kept_logits(checkpoint: Path) -> Tensor | None:
    """What `original_logits` gave, of an imported checkpoint; None where it has none."""
    return next(iter(Shards(checkpoint).each(ORIGINAL)), None)


def compare_import(model: ModelConfig, ours: LanguageModel, original: Tensor) -> LogitsCompared:
    """Compare a model as it is read from an imported checkpoint with the original. May change its weights."""
    logits = _logits(model, ours)[:, -original.shape[1] :]
    return _with_rounding(_compared(logits, original, "original"), model, ours, logits)


def compare(
    model: ModelConfig, weights: dict[str, Tensor], dtypes: dict[str, torch.dtype], checkpoint: Path, exported: Path
) -> LogitsCompared | str:
    """Compare the exported directory, as transformers loads it, with the original that was imported, or else with the run's
    model, in float32; or why it was not done. Raises RunError where it isn't the run's model with `weights` rounded to `dtypes`.
    """
    if model.parameters() > MOST_PARAMETERS:
        return f"not compared: {model.parameters():,} parameters are loaded twice for it"
    try:
        import transformers
    except ImportError:
        return "not compared: transformers is not installed"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    got = _logits(model, _their_logits(theirs.eval()))
    del theirs
    ours = build_model(model).eval()
    ours.load_state_dict(weights, strict=False)  # a tied matrix is there under its first name alone
    original = kept_logits(checkpoint)
    wanted, reference = (_logits(model, ours), "run") if original is None else (original, "original")
    stored = ours.stored_tensors()
    is_rounded = any(dtypes[name] != tensor.dtype for name, tensor in stored.items())
    for name, tensor in stored.items():
        tensor.data = tensor.data.to(dtypes[name]).to(tensor.dtype)
    rounded = _logits(model, ours) if is_rounded or reference == "original" else wanted
    same = _with_rounding(_compared(got, rounded, "run"), model, ours, rounded)
    if not same.is_noise:
        raise RunError(f"{checkpoint}: is another model once exported: its logits {in_words(same)}, rounded alike")
    return replace(_compared(got, wanted, reference), rounding=same.rounding)


def in_words(compared: LogitsCompared | str) -> str:
    """For the log and the card."""
    if isinstance(compared, str):
        return compared
    moved = compared.rounding
    rounding = "" if moved is None else f"; the last bit of every weight moves them by {moved:.2g}"
    return (
        f"differ from the {compared.reference}'s by {compared.max_difference:.2g} at most over {compared.tokens} tokens "
        f"(their standard deviation is {compared.scale:.2g}{rounding})"
    )


def _their_logits(model: Callable[..., object]) -> Callable[[Tensor], Tensor]:
    return lambda tokens_BT: model(tokens_BT, use_cache=False).logits  # type: ignore[attr-defined] # some fail with a cache


@torch.no_grad()
def _logits(model: ModelConfig, call: Callable[..., Tensor]) -> Tensor:
    """[B, T, V] of the fixed tokens."""
    shape, generator = (SEQUENCES, min(LENGTH, model.max_sequence)), torch.Generator().manual_seed(0)
    return call(torch.randint(0, model.vocabulary, shape, generator=generator)).float()


def _compared(got_BTV: Tensor, wanted_BTV: Tensor, reference: str) -> LogitsCompared:
    """Of the last positions, as many as are wanted."""
    difference = float((got_BTV[:, -wanted_BTV.shape[1] :] - wanted_BTV).abs().max())
    return LogitsCompared(difference, float(wanted_BTV.std()), wanted_BTV[..., 0].numel(), reference)


def _with_rounding(
    compared: LogitsCompared, model: ModelConfig, ours: LanguageModel, logits_BTV: Tensor
) -> LogitsCompared:
    """The comparison of `ours`, which has these logits, with its rounding where that decides: its weights are then moved."""
    if compared.is_noise:
        return compared
    generator = torch.Generator().manual_seed(0)
    for tensor in ours.stored_tensors().values():
        if tensor.is_floating_point():
            sign = 2 * torch.randint(0, 2, tensor.shape, generator=generator) - 1
            tensor.data = tensor.data * (1 + torch.finfo(tensor.dtype).eps * sign)
    return replace(compared, rounding=_compared(_logits(model, ours), logits_BTV, "run").max_difference)
