"""Export a checkpoint's weights as safetensors, which cannot contain code.

`hf` is a directory that transformers loads with from_pretrained: a model that is equal to the decoder (hf_names.py), or of an
imported run the model that was imported. Weights are float32 by default; the padding rows of the vocabulary are kept.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from emergence_train import config as configs
from emergence_train import files
from emergence_train.checkpoint import format as checkpoints
from emergence_train.convert.hf_names import hf_config, hf_weights
from emergence_train.data import identity
from emergence_train.data import tokenizer as tokenizers
from emergence_train.errors import InputError
from emergence_train.models.decoder_config import AttentionScores

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FILE_BYTES = 5 * 10**9  # of weights in one file; more go into several with an index, as transformers has them


def export(
    run: Path,
    step: int | None,
    out: Path,
    log: Callable[[str], None],
    *,
    dtype: str = "float32",
    file_bytes: int = FILE_BYTES,
) -> Path:
    """Write the weights of `step` (None: the newest checkpoint) of `run` to the directory `out`, as `dtype` (of DTYPES)."""
    config = configs.load_run(run)
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: is not empty; choose another directory")
    if config.model.kind != "decoder":
        raise InputError(f"{run}: transformers has no model for kind {config.model.kind}; only decoder is exported")
    if config.model.attention != AttentionScores():
        raise InputError(
            f"{run}: Llama and Phi-3 have no softcap, sinks or ALiBi (model.attention); this model is not exported"
        )
    chosen = checkpoints.newest(run, step)
    tokenizer = identity.tokenizer_of(run, Path(config.data.path))
    out.mkdir(parents=True, exist_ok=True)
    weights = checkpoints.read_weights(chosen)
    ends = export_tokenizer(*tokenizer, out, config.data.sequence)
    files.write_json(out / "config.json", hf_config(config.model) | ends | {"torch_dtype": dtype})
    tensors = {name: weight.to(DTYPES[dtype]) for name, weight in hf_weights(weights, config.model).items()}
    _write_weights(out, tensors, file_bytes)
    log(f"{chosen.name} of {config.name} as {hf_config(config.model)['architectures'][0]}: {out}")
    return out


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


def export_tokenizer(path: Path, end: int, out: Path, length: int) -> dict:
    """Copy the tokenizer in transformers' form; return the special ids for config.json.

    transformers then tokenizes as in training: nothing added at the ends, special tokens in a text are text. The end-of-text
    token also serves as bos, and as pad where the tokenizer has no such token.
    """
    tokenizer = tokenizers.load_file(path)
    token = tokenizer.id_to_token(end)
    if token is None:
        raise InputError(
            f"{path}: has no token {end}, which ended the texts of the run; restore the run's tokenizer.json"
        )
    shutil.copyfile(path, out / "tokenizer.json")
    pad = next((name for name in tokenizers.KNOWN_PADS if tokenizer.token_to_id(name) is not None), token)
    files.write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": token,
            "bos_token": token,
            "pad_token": pad,
            "model_max_length": length,
            "split_special_tokens": True,
            "clean_up_tokenization_spaces": False,
        },
    )
    return {"bos_token_id": end, "eos_token_id": end, "pad_token_id": tokenizer.token_to_id(pad)}
