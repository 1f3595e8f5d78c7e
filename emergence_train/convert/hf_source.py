"""Models of transformers to import: directories or names, a revision or a subdirectory for each step."""

import contextlib
import functools
import os
import re
import socket
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from emergence_train.convert.hf_export import not_finite
from emergence_train.data import tokenizer as tokenizers
from emergence_train.errors import InputError
from emergence_train.input_files import POINTER, POINTER_SAYS, read_text
from emergence_train.models import hf_probes
from emergence_train.models.hf_config import encoded

try:
    import transformers
except ImportError as error:
    raise InputError("transformers is not installed: pip install 'emergence-train[hf]'") from error

STEP = re.compile(r"(?:step|checkpoint|iter|ckpt)[-_]?0*(\d+)", re.IGNORECASE)  # in the name of a revision or directory
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
ADAPTER = "adapter_config.json"
ANSI = re.compile(r"\x1b\[[0-9;]*m")
BROKEN = (EOFError, SafetensorError, UnpicklingError)  # a file of weights
UNREADABLE = (*BROKEN, OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, AssertionError)
OWN = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")  # may differ between steps


@dataclass(frozen=True)
class HFSource:
    """A directory, or a name on the hub, and its revision."""

    name: str
    revision: str | None = None

    @property
    def label(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name

    @property
    def step(self) -> int | None:
        """The step that the revision or the directory is named after, as given or else where a link leads; None: none."""
        given, target = Path(os.path.abspath(self.name)).name, Path(self.name).resolve().name
        named = map(STEP.search, [self.revision] if self.revision else [given, target])
        return next((int(match[1]) for match in named if match), None)

    @property
    def place(self) -> dict[str, Any]:
        """Arguments of transformers' from_pretrained. Without network only the cache is looked at: it would try for a minute."""
        revision = {"revision": self.revision} if self.revision else {}
        offline = {"local_files_only": True} if self.is_offline else {}
        return {"pretrained_model_name_or_path": self.name, **revision, **offline}

    @property
    def is_offline(self) -> bool:
        """Whether this is a name on a hub that cannot be reached."""
        return not Path(self.name).exists() and not _hub_is_reachable()


@functools.cache
def _hub_is_reachable() -> bool:
    """Whether the hub's name resolves, or a proxy does that."""
    from huggingface_hub import constants

    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urllib.parse.urlparse(constants.ENDPOINT).hostname, None)
    except OSError:
        return False
    return True


def source_of(text: str) -> HFSource:
    """DIR_OR_NAME[@REVISION]."""
    name, sign, revision = text.rpartition("@")
    return HFSource(name, revision) if sign and not Path(text).exists() else HFSource(text)


def sources_of(texts: list[str], log: Callable[[str], None]) -> list[HFSource]:
    """DIR_OR_NAME[@REVISION] each. A directory of checkpoint directories (of transformers' Trainer, for one) is all of them; of
    others in it the log says that they are left out."""
    sources = []
    for text in texts:
        path = Path(text)
        if not path.is_dir() or _is_model(path):
            sources.append(source_of(text))
            continue
        inside = sorted(path.iterdir(), key=lambda inner: (not inner.is_symlink(), inner.name))
        below = [HFSource(str(inner)) for inner in inside if _is_model(inner)]
        below = list(
            {(Path(source.name).resolve(), source.step): source for source in below}.values()
        )  # `latest` is a link
        named = [source for source in below if source.step is not None]
        if not named:
            raise InputError(
                f"{text}: has no config.json, and no directories named after steps that have one; give the directory "
                f"that save_pretrained wrote"
            )
        for source in below:
            if source not in named:
                log(f"{source.label}: is left out: its name has no step (as step1000 or checkpoint-1000 has)")
        sources += sorted(named, key=lambda source: source.step or 0)
    return sources


def _is_model(path: Path) -> bool:
    return any(
        os.path.isfile(path / name) for name in ("config.json", ADAPTER)
    )  # False in a directory that cannot be read


def read_config(source: HFSource) -> Any:
    """The model's transformers configuration. Raises InputError for what cannot be imported."""
    with _one_line(source):
        adapter = read_files(source, [ADAPTER])
    if adapter:
        raise InputError(
            f"{source.label}: holds an adapter ({ADAPTER}) of a model; merge it (peft's merge_and_unload), and give the "
            f"directory that the merged model is saved in"
        )
    with _one_line(source):
        config = transformers.AutoConfig.from_pretrained(**source.place)
    if getattr(config, "quantization_config", None):
        raise InputError(f"{source.label}: its weights are quantised; give the checkpoint that they were made from")
    if type(config) not in transformers.AutoModelForCausalLM._model_mapping:
        raise InputError(
            f"{source.label}: is a {config.model_type}, of which transformers has no causal language model; give one that is"
        )
    return config


def plain(config: Any) -> dict[str, Any]:
    """A configuration as JSON, without what depends on the place and precision of the weights."""
    content = config.to_dict()
    return {key: encoded(value) for key, value in content.items() if key not in OWN}


def read_model(source: HFSource, log: Callable[[str], None]) -> Any:
    """The model in float32, which holds what its files hold whatever their dtype is, and that of config.json. Raises InputError
    where weights are missing or not finite; of weights that it has no place for the log says that they are left out."""
    with _one_line(source):
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            **source.place, dtype=torch.float32, output_loading_info=True
        )
    if missing := sorted(loading["missing_keys"]):
        raise InputError(
            f"{source.label}: has no weights {missing[0]} ({len(missing)} are missing); give a complete checkpoint"
        )
    if name := not_finite(dict(model.named_parameters())):
        raise InputError(f"{source.label}: its weights hold NaN or infinity ({name}); give a checkpoint before that")
    if unexpected := sorted(loading["unexpected_keys"]):
        log(
            f"{source.label}: weights {unexpected[0]} ({len(unexpected)} in all) are left out: the model of its config.json "
            f"has none"
        )
    return model


def check(model: Any, source: HFSource, log: Callable[[str], None]) -> None:
    """Raise InputError for a model that is not causal; log where its cache cannot be used."""
    with _one_line(source):
        causal, cached = hf_probes.is_causal(model), hf_probes.cache_is_exact(model)
    if not causal:
        raise InputError(
            f"{source.label}: its logits change with tokens that come later, as an encoder's do, so it has no losses of "
            f"predictions; give a causal language model"
        )
    if not cached:
        log(
            f"{source.label}: keeps no key-value cache of transformers' kind: generation computes the whole text each time"
        )


class HFTokenizer(NamedTuple):
    """What an import takes of a tokenizer."""

    content: str  # of tokenizer.json
    files: dict[str, bytes]  # which an export gives out again; none of a tokenizer.json alone
    end: str | None = None  # the end-of-text token; of a tokenizer.json alone not known, nor is `longest`
    longest: int | None = None  # tokens of a sequence
    begin: int | None = None  # the token that it puts before every text


def read_tokenizer(source: HFSource) -> HFTokenizer:
    """The tokenizer of a model, or of a tokenizer.json."""
    if Path(source.name).is_file():
        content = read_text(tokenizers.find(source.name))
        return HFTokenizer(content, {}, begin=_begin(Tokenizer.from_str(content)))
    with _one_line(source, tokenizer=True):
        tokenizer = transformers.AutoTokenizer.from_pretrained(**source.place)
        files = read_files(source, TOKENIZER_FILES)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if "tokenizer.json" not in files:
        if backend is None:
            raise InputError(
                f"{source.label}: its tokenizer has no tokenizer.json and cannot be converted into one; give --tokenizer another"
            )
        files = _converted(tokenizer)
    content = files["tokenizer.json"].decode()
    longest = tokenizer.model_max_length
    longest = longest if longest < 10**9 else None
    return HFTokenizer(content, files, tokenizer.eos_token, longest, _begin(backend or Tokenizer.from_str(content)))


def read_files(source: HFSource, names: Iterable[str]) -> dict[str, bytes]:
    """Content of those of the source's files that it has."""
    paths = {}
    for name in names:
        paths[name] = transformers.utils.cached_file(
            source.name,
            name,
            revision=source.revision,
            local_files_only=source.is_offline,
            _raise_exceptions_for_missing_entries=False,
        )
    return {name: Path(path).read_bytes() for name, path in paths.items() if path}


def _converted(tokenizer: Any) -> dict[str, bytes]:
    """The files that transformers writes of a tokenizer that it has converted."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def _begin(tokenizer: Tokenizer) -> int | None:
    bare, whole = (tokenizer.encode("a", add_special_tokens=added).ids for added in (False, True))
    return whole[0] if len(whole) > len(bare) and whole[1 : 1 + len(bare)] == bare else None


def _damaged(folder: Path, reason: str) -> str | None:
    """Which of a directory's files is a pointer of git-lfs, or weights that end early, and what to do. Raises OSError for one
    that cannot be opened and that the reason names."""
    for path in sorted(path for path in folder.glob("*") if os.path.isfile(path)):
        try:
            with open(path, "rb") as file:
                beginning = file.read(len(POINTER))
        except OSError:
            if path.name in reason:
                raise
            continue  # not what transformers could not read
        if beginning == POINTER:
            return f"{path}: {POINTER_SAYS}"
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "pt"):
                    pass
            except SafetensorError as error:
                return f"{path}: is damaged ({error}); copy or download it again"
    return None


@contextlib.contextmanager
def _one_line(source: HFSource, tokenizer: bool = False) -> Iterator[None]:
    """Within, what transformers raises for a model, or its tokenizer, that it cannot read is an InputError; its warnings are left
    out."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    except UNREADABLE as error:
        if damaged := _damaged(Path(source.name), str(error)):
            raise InputError(damaged) from None
        reason = " ".join(ANSI.sub("", str(error)).split())[:200]
        if tokenizer:
            raise InputError(
                f"{source.label}: transformers {transformers.__version__} cannot read its tokenizer ({reason}); give one with "
                f"--tokenizer"
            ) from None
        if source.is_offline:
            raise InputError(
                f"{source.label}: is no directory, and the hub cannot be reached; give a directory that save_pretrained wrote"
            ) from None
        raise InputError(
            f"{source.label}: transformers {transformers.__version__} cannot read it ({reason}); give a directory that "
            f"save_pretrained wrote, or a name with network"
        ) from None
    finally:
        transformers.logging.set_verbosity(before)
