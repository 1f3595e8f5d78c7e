"""Export a checkpoint's weights as safetensors, which cannot contain code.

`hf` is a directory that transformers loads with from_pretrained: a model that is equal to the decoder (hf_names.py), or of an
imported run the model that was imported. Weights are float32 by default; the padding rows of the vocabulary are kept.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from emergence_train import config as configs
from emergence_train import files
from emergence_train.checkpoint import format as checkpoints
from emergence_train.checkpoint.format import step_name
from emergence_train.checkpoint.shards import read_weights
from emergence_train.convert.hf_names import WRAPPED, hf_config, hf_weights
from emergence_train.convert.logits import LogitsCompared, compare, in_words
from emergence_train.convert.model_card import model_card
from emergence_train.data import identity
from emergence_train.data import tokenizer as tokenizers
from emergence_train.errors import InputError, RunError
from emergence_train.evaluation.saved_model import check_stored
from emergence_train.input_files import read_text
from emergence_train.models.config import ModelConfig
from emergence_train.models.decoder_config import AttentionScores, DecoderConfig
from emergence_train.models.hf_config import HFConfig, float32_tensors
from emergence_train.models.imported import Imported
from emergence_train.models.language_model import LanguageModel
from emergence_train.models.registry import build_model
from emergence_train.recorder import tables

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
ORIGINAL_FILES = "original"  # in an imported run: the files of the model that an export gives out again
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
FILE_BYTES = 5 * 10**9  # of weights in one file; more go into several with an index, as transformers has them


@dataclass(frozen=True)
class Exported:
    """What was written: `files` with their bytes and SHA-256, `loss` in nats per token by split; `pushed`: its page, or None.

    `logits`: the largest difference from the run's own and their scale; None where they were not compared.
    """

    export: str
    run: str
    step: int
    tokens: int
    architecture: str
    dtype: str
    parameters: int
    loss: dict[str, float]
    files: list[dict]
    logits: LogitsCompared | None = None
    pushed: str | None = None


def export(
    run: Path,
    step: int | None,
    out: Path,
    log: Callable[[str], None],
    *,
    dtype: str = "float32",
    file_bytes: int = FILE_BYTES,
) -> Exported:
    """Write the weights of `step` (None: the newest checkpoint) of `run` to the directory `out`, as `dtype` (of DTYPES)."""
    config = configs.load_run(run)
    dtype = SHORT.get(dtype, dtype)
    _check_empty(out)
    settings = _settings(run, config.model, config.model.max_sequence if config.imported else config.data.sequence)
    chosen = checkpoints.newest(run, step)
    step = checkpoints.step_of(chosen)
    tokenizer = identity.tokenizer_of(run, Path(config.data.path))
    weights = read_weights(chosen)
    with torch.device("meta"):
        shadow = build_model(config.model)
    check_stored(shadow, weights, chosen)
    if constants := shadow.stored_tensors().keys() - weights.keys():  # transformers does not set all that a file lacks
        built = build_model(config.model).stored_tensors().items()
        weights |= {name: tensor.detach().clone() for name, tensor in built if name in constants}
        del built
    architecture = (settings.get("architectures") or [settings["model_type"]])[0]
    with _unfinished(out) as folder:
        special = _tokenizer(run, *tokenizer, folder, settings["max_position_embeddings"], config.imported, log)
        files.write_json(folder / "config.json", dict(sorted((settings | special | {"dtype": dtype}).items())))
        dtypes = _dtypes(config.model, shadow, DTYPES[dtype])
        rounded = {name: weight.to(dtypes[name]) for name, weight in weights.items()}
        _check_finite(weights, rounded, chosen, dtype)
        _write_weights(folder, _by_their_names(rounded, config.model), file_bytes)
        del rounded  # another model is loaded now
        compared = compare(config.model, weights, dtypes, chosen, folder)
        card = model_card(
            run,
            step,
            step * config.step_tokens,
            name=config.name,
            model=config.model,
            data=config.data,
            training=config.training,
            imported=config.imported,
            architecture=architecture,
            logits=in_words(compared),
        )
        files.write_bytes(folder / "README.md", card.encode())
    log(f"{chosen.name} of {config.name} as {architecture}: {out}")
    log(f"logits {in_words(compared)}")
    return Exported(
        export=str(out),
        run=config.name,
        step=step,
        tokens=step * config.step_tokens,
        architecture=architecture,
        dtype=dtype,
        parameters=config.model.parameters(),
        loss=_losses(run, step),
        files=[files.describe(out, path) for path in sorted(out.iterdir())],
        logits=None if isinstance(compared, str) else compared,
    )


UNFINISHED = ".unfinished"
LAST = "config.json"


def _check_empty(out: Path, is_own: bool = False) -> None:
    """Raise InputError where `out` is there with more in it than what an export leaves that was killed before it moved a file.
    `is_own`: UNFINISHED is this export's."""
    if out.exists() and (not out.is_dir() or any(entry.name != UNFINISHED for entry in out.iterdir())):
        rest = out / UNFINISHED
        if not is_own and rest.is_dir() and not files.is_locked(rest) and not (out / LAST).exists():
            raise InputError(f"{out}: holds part of an export that was killed; delete it, or choose another one")
        raise InputError(f"{out}: is not an empty directory; choose another one")


@contextlib.contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    """A directory in `out`, whose files become those of `out` where the block succeeds; where it fails nothing is left.

    config.json last, without which nothing loads the others.

    In it and not beside it: `out` may be a disk of its own.
    """
    folder, is_new = out / UNFINISHED, not out.exists()
    with files.lock(folder, busy="another export writes it; wait for it", other="directory"):
        try:
            _check_empty(out, is_own=True)  # now that no other writes it
            for rest in folder.iterdir():  # of one that was killed
                if rest.name != ".lock":
                    rest.unlink()
            yield folder
            for path in sorted(folder.iterdir(), key=lambda path: (path.name == LAST, path.name)):
                if path.name != ".lock":
                    path.rename(out / path.name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if is_new:
                with contextlib.suppress(OSError):  # it has the export
                    out.rmdir()


def _settings(run: Path, model: ModelConfig, longest: int) -> dict[str, Any]:
    """The config.json of the run's model, for sequences of `longest` tokens. Raises InputError where it has none."""
    if isinstance(model, HFConfig):
        return {"max_position_embeddings": longest, **model.transformers}
    if not isinstance(model, DecoderConfig):
        raise InputError(f"{run}: transformers has no model for kind {model.kind}; only decoder is exported")
    if model.attention != AttentionScores():
        raise InputError(
            f"{run}: Llama and Phi-3 have no softcap, sinks or ALiBi (model.attention); this model is not exported"
        )
    return hf_config(model.model_copy(update={"max_sequence": longest}))


def _dtypes(config: ModelConfig, shadow: LanguageModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """In which each tensor goes out: buffers in their own, some are integers; and transformers keeps some weights in float32."""
    kept = float32_tensors(shadow.model, float16=dtype == torch.float16) if isinstance(config, HFConfig) else {}
    own = {f"{WRAPPED}{name}": tensor.dtype for name, tensor in kept.items()}
    own |= {name: buffer.dtype for name, buffer in shadow.named_buffers()}
    return {name: own.get(name, dtype) for name in shadow.stored_tensors()}


def _check_finite(weights: dict[str, Tensor], rounded: dict[str, Tensor], checkpoint: Path, dtype: str) -> None:
    """Raise InputError for weights that are NaN or infinite, or are so in `dtype`."""
    if name := not_finite(weights):
        raise InputError(f"{checkpoint}: {name} holds NaN or infinity; export an earlier step")
    if name := not_finite(rounded):
        wider = "bf16" if dtype == "float16" else "fp32"
        most = float(weights[name].abs().max())
        raise InputError(f"{checkpoint}: {name} holds {most:.3g}, which is infinite in {dtype}; give --dtype {wider}")


def not_finite(weights: dict[str, Tensor]) -> str | None:
    """The first of the weights that holds NaN or infinity."""
    return next((name for name, weight in weights.items() if not weight.isfinite().all()), None)


def _by_their_names(weights: dict[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    if isinstance(model, DecoderConfig):
        return hf_weights(weights, model)
    return {name.removeprefix(WRAPPED): weight for name, weight in weights.items()}


def _losses(run: Path, step: int) -> dict[str, float]:
    """Mean loss of each split at `step`, nats per token; nothing where it was not measured."""
    path = run / "positions" / f"{step_name(step)}.parquet"
    if not path.is_file():
        return {}
    means = tables.mean_loss(tables.read(tables.POSITIONS, path))
    return dict(zip(means["split"], means["loss"].astype(float)))


def push(exported: Exported, name: str, log: Callable[[str], None]) -> Exported:
    """Upload an exported directory to the Hugging Face hub as the private model `name`, made where it does not exist."""
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise InputError("huggingface_hub is not installed: pip install 'emergence-train[hub]'") from error
    try:
        api = HfApi()
        api.create_repo(name, private=True, exist_ok=True)
        url = api.upload_folder(repo_id=name, folder_path=exported.export, commit_message=f"Step {exported.step}")
    except Exception as error:  # besides the hub's own those of its transport, which is another library in each version
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"--push {name}: {reason}; {exported.export} is complete: log in (hf auth login) and upload it with "
            f"hf upload {name} {exported.export}"
        ) from error
    log(f"pushed: {url}")
    return replace(exported, pushed=str(url))


def _write_weights(out: Path, weights: dict[str, Tensor], file_bytes: int) -> None:
    """model.safetensors, or model-0000i-of-0000n.safetensors and the index that names each weight's file."""
    groups: list[dict[str, Tensor]] = [{}]
    room = file_bytes
    for name, weight in weights.items():
        size = weight.numel() * weight.element_size()
        if groups[-1] and size > room:
            groups.append({})
            room = file_bytes
        groups[-1][name] = weight
        room -= size
    names = [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    names = names if len(groups) > 1 else ["model.safetensors"]
    for name, group in zip(names, groups):
        with files.atomic_path(out / name) as temporary:
            checkpoints.write_tensors(temporary, group, {"format": "pt"})
    if len(groups) > 1:
        total = sum(weight.numel() * weight.element_size() for weight in weights.values())
        owners = {key: name for name, group in zip(names, groups) for key in group}
        files.write_json(
            out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": owners}
        )


def _tokenizer(
    run: Path,
    path: Path,
    end: int,
    out: Path,
    length: int,
    imported: Imported | None,
    log: Callable[[str], None],
) -> dict:
    """Write tokenizer and generation settings, of an import those that came in; return the special ids for config.json."""
    if imported is None:
        return export_tokenizer(path, end, out, length)
    original = run / ORIGINAL_FILES
    if not (original / "tokenizer.json").is_file():  # another was given, to which nothing of the original applies
        if not original.is_dir():
            log(
                f"{run}: was imported without its tokenizer's settings; import it again, to the same --out, for its own end "
                f"and pad tokens"
            )
        return export_tokenizer(path, end, out, length, imported.begin_token)
    for kept in sorted(original.iterdir()):
        if kept.name != "config.json":
            files.write_bytes(out / kept.name, kept.read_bytes())
    config = json.loads(read_text(original / "config.json"))
    return {name: config.get(name) for name in SPECIAL_IDS}


def export_tokenizer(path: Path, end: int, out: Path, length: int, begin: int | None = None) -> dict:
    """Write the tokenizer in transformers' form and generation_config.json; return the special ids for config.json.

    transformers then tokenizes as in training: only `begin` is added at the ends, special tokens in a text are text. The
    end-of-text token also serves as bos where there is no `begin`, and as pad where the tokenizer has no such token.
    """
    tokenizer = tokenizers.load_file(path)
    token = tokenizer.id_to_token(end)
    if token is None:
        raise InputError(
            f"{path}: has no token {end}, which ended the texts of the run; restore the run's tokenizer.json"
        )
    files.write_bytes(out / "tokenizer.json", path.read_bytes())
    bos = tokenizer.id_to_token(end if begin is None else begin)
    if begin is not None:
        tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, begin)]
        )
        files.write_bytes(out / "tokenizer.json", tokenizer.to_str().encode())
    pad = next((name for name in tokenizers.KNOWN_PADS if tokenizer.token_to_id(name) is not None), token)
    files.write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": token,
            "bos_token": bos,
            "pad_token": pad,
            "model_max_length": length,
            "split_special_tokens": True,
            "clean_up_tokenization_spaces": False,
        },
    )
    ids = (end if begin is None else begin, end, tokenizer.token_to_id(pad))
    special = dict(zip(SPECIAL_IDS, ids))
    files.write_json(out / "generation_config.json", {**special, "do_sample": False})
    return special
