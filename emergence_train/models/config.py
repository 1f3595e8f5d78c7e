"""Base class of a model's section of the configuration: its sizes."""

from dataclasses import dataclass
from typing import ClassVar, Self

from pydantic import Field

from emergence_train.errors import InputError
from emergence_train.section import Section

VOCABULARY_MULTIPLE = 64  # embedding rows are rounded up to this: aligned rows for the matrix units, never predicted


@dataclass(frozen=True)
class Activations:
    """Bytes of activations for each token of a micro-batch; models.memory adds them up."""

    blocks: float  # kept by all blocks from the forward to the backward pass
    head: float  # beside them, while the head computes the loss
    backward: float  # beside them, where the backward pass of the last block is fullest
    forward: float  # of a block, in a forward pass without gradients


@dataclass(frozen=True)
class Work:
    """What a device does for each trained token, forward and backward, with what activation checkpointing computes again."""

    blocks: float  # FLOPs of the blocks' matrix products
    head: float  # FLOPs of the output head's
    attention: float  # FLOPs of queries by keys and probabilities by values
    traffic: float  # bytes that all else reads and writes: norms, element-wise operations, attention's tensors, logits


class ModelConfig(Section):
    """Base class. A kind is one file, with a subclass of this and one of LanguageModel, and a line in registry.MODELS."""

    # The values of training.activation_checkpointing that the module follows, from the one that keeps most
    checkpointings: ClassVar[tuple[str, ...]] = ("none",)

    kind: str
    vocab_size: int | None = Field(
        default=None, ge=2, description="rows of the embedding; None: the tokenizer's, rounded up to 64"
    )
    max_sequence: int = Field(default=2048, ge=1, description="longest sequence that the model takes, tokens")

    def non_embedding_parameters(self) -> int:
        """Parameters outside the embedding and the output head: the N of scaling laws, and `params` in the tables."""
        raise NotImplementedError

    def parameters(self) -> int:
        """All parameters; a tied matrix counts once."""
        raise NotImplementedError

    def flops_per_token(self, sequence: int) -> float:
        """FLOPs of forward and backward per trained token, an addition and a multiplication being two.

        Recomputation is not counted: these are the FLOPs of the model, not of an implementation.
        """
        raise NotImplementedError

    @property
    def hidden(self) -> int:
        """Features of the hidden states that the output head reads."""
        raise NotImplementedError

    def activations(self, checkpointing: str, size: int, linears: str = "bf16", sequence_ranks: int = 1) -> Activations:
        """Bytes for each token of a micro-batch, with elements of `size` bytes, `training.activation_checkpointing`,
        `training.linears` and `training.sequence_parallel`; of a token on its own rank."""
        raise NotImplementedError

    def work(self, sequence: int, checkpointing: str, size: int, linears: str = "bf16") -> Work:
        """For each token of a sequence of `sequence`; the other arguments as those of `activations`."""
        raise NotImplementedError

    def unsplit_reason(self, ranks: int) -> str | None:
        """Why a sequence cannot be split over so many ranks, with what to change; None where it can."""
        return f"model.kind {self.kind} does not split sequences; leave it at 1"

    def exchanged(self, ranks: int) -> int:
        """Elements of a token that `ranks` sharing a sequence exchange in a forward pass, and again in the backward pass."""
        raise NotImplementedError

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding, once they are known."""
        if self.vocab_size is None:
            raise ValueError("vocab_size is not set yet; it comes from the tokenizer")
        return self.vocab_size

    def with_vocabulary(self, tokens: int, source: str) -> Self:
        """The section with the rows of its embedding, for a tokenizer of `tokens`; `source` says in an error where that is from.

        Raises:
            InputError: vocab_size is given and smaller.
        """
        size = self.vocab_size or padded_vocabulary(tokens)
        if size < tokens:
            raise InputError(
                f"model.vocab_size {size} is smaller than the tokenizer's {tokens} tokens ({source}); raise it or remove it"
            )
        return self.model_copy(update={"vocab_size": size})


def padded_vocabulary(tokens: int) -> int:
    """`tokens` rounded up to a multiple of VOCABULARY_MULTIPLE."""
    return -(-tokens // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
