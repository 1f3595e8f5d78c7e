"""Text that a model writes: at a run's checkpoints, and from any saved one (`emergence-train generate`)."""

from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

from emergence_train import config as configs
from emergence_train.checkpoint import format as checkpoints
from emergence_train.config import Samples
from emergence_train.data import identity
from emergence_train.data import tokenizer as tokenizers
from emergence_train.errors import SURROGATE, InputError
from emergence_train.evaluation.generation import generate, sampled
from emergence_train.evaluation.saved_model import load_model
from emergence_train.faults.joined import joined
from emergence_train.models.begin_token import beginning
from emergence_train.models.language_model import LanguageModel
from emergence_train.parallel.mesh import Mesh
from emergence_train.parallel.ranks import on_every_rank


class TextSamples:
    """Prompts and how they are continued. The constructor checks that each fits.

    Args:
        end: the end-of-text token. longest: tokens of a prompt and its text together, at most.
    """

    def __init__(self, samples: Samples, tokenizer: Tokenizer, end: int, longest: int) -> None:
        self.samples, self.tokenizer, self.end = samples, tokenizer, end
        for text in samples.prompts:
            if SURROGATE.search(text):
                raise InputError(f"the prompt {text[:40]!r} is not UTF-8; give it as text in that encoding")
        self.prompts = [tokenizer.encode(text, add_special_tokens=False).ids for text in samples.prompts]
        for text, ids in zip(samples.prompts, self.prompts):
            if max(len(ids), 1) + samples.tokens > longest:
                raise InputError(
                    f"the prompt {text[:40]!r} has {len(ids)} tokens, and with {samples.tokens} more it is longer than "
                    f"{longest}; ask for fewer tokens or shorten the prompt"
                )

    def write(
        self, model: LanguageModel, mesh: Mesh, each_batch: Callable[[], None] = lambda: None
    ) -> list[dict[str, str]]:
        """[{"prompt", "text"}]: the same on every rank, whatever their number. Collective: all ranks call it."""
        choose = sampled(self.samples.temperature, self.samples.seed)
        prompts = [ids or beginning(model, self.end) for ids in self.prompts]
        written = generate(
            model, prompts, self.samples.tokens, lambda ids: ids[-1] == self.end, mesh, each_batch, choose=choose
        )
        return [
            {"prompt": prompt, "text": self.tokenizer.decode(ids)} for prompt, ids in zip(self.samples.prompts, written)
        ]


def continue_texts(run: Path, samples: Samples, step: int | None = None) -> dict:
    """Continue prompts with the run's newest checkpoint, or that of `step`; the run's data are not needed.

    Returns {"run", "step", "temperature", "seed", "texts": [{"prompt", "text"}]}.
    """
    config = configs.load_run(run)
    folder = checkpoints.newest(run, step)
    path, end = identity.tokenizer_of(run, Path(config.data.path))
    texts = TextSamples(samples, tokenizers.load_file(path), end, config.model.max_sequence)
    with joined(run, config.training.threads, config.faults.silent_seconds) as mesh:
        model = on_every_rank(lambda: load_model(config.model, folder, config.imported).to(mesh.device))
        if config.training.precision == "bf16" and mesh.device.type == "cuda":
            model = model.bfloat16()
        written = texts.write(model, mesh)
    return {
        "run": config.name,
        "step": checkpoints.read_state(folder)["step"],
        "temperature": samples.temperature,
        "seed": samples.seed,
        "texts": written,
    }
