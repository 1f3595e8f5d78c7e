"""The files of a checkpoint: manifest, verification, tensors. None of them can contain code.

checkpoints/step-XXXXXXXXXX/
  shard-00000-of-00002.safetensors   rank 0 of 2: pieces of the fp32 weights and of the optimizer's moments
  state.json                         step, shapes of the parameters, number of updates, state of the training loop
  pieces.index                       which shard holds which pieces, so that a reader opens those that it needs
  manifest.json                      size and SHA-256 of the files above; without it, or where it does not match, there
                                     is no checkpoint

A piece is a one-dimensional tensor named kind|start|parameter: elements from `start` on of the flattened parameter
("weights", "exp_avg", ...), so that a reader does not depend on the world size or ZeRO stage that wrote it.
"""

import errno
import hashlib
import json
import os
import queue
import re
import stat
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from emergence_train import files
from emergence_train.checkpoint.pieces import INDEX, Held, Index
from emergence_train.errors import InputError, RunError
from emergence_train.input_files import read_text
from emergence_train.recorder.layout import step_name, step_of

FORMAT = 1
MANIFEST, STATE, POINTER = "manifest.json", "state.json", "latest"
WEIGHTS = "weights"  # the kind of the weights' pieces; the others are the optimizer's moments
DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.bfloat16: "BF16", torch.float16: "F16"}
MOST_STATE = 64 << 20  # bytes of a manifest or a state.json; with 4,096 ranks and 409 parameters they have 0.7 MB
CHUNK, SMALL = 1 << 24, 1 << 18  # bytes hashed and written at a time; below which tensors are put together first


def shard_name(rank: int, world: int) -> str:
    return f"shard-{rank:05d}-of-{world:05d}.safetensors"


def complete(folder: Path) -> list[Path]:
    """Checkpoint directories that have a manifest, usable or not, oldest first; RunError where the directory is unreadable."""
    try:
        names = [name for name in os.listdir(folder) if re.fullmatch(r"step-\d{10}", name)]
        return sorted(folder / name for name in names if _is_there(folder / name / MANIFEST))
    except OSError as error:
        refuse_unreadable(folder, error)
        if isinstance(error, FileNotFoundError):
            return []
        raise unreadable(folder, error) from None


def _is_there(path: Path) -> bool:
    """Whether there is such a name, be it of a link to nothing. Unlike os.path.lexists it raises where that cannot be known."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


DAMAGED = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO)  # errors of a missing or damaged file


def unreadable(path: Path, error: OSError) -> RunError:
    """The RunError for a file that exists but cannot be read now: not damage, so nothing is set aside or restarted."""
    return RunError(f"{error.filename or path}: cannot be read ({error.strerror or error}); fix that, then run again")


def refuse_unreadable(path: Path, error: OSError) -> None:
    """Raises RunError for the error of a file that is neither missing nor damaged: one that is a link to nothing too."""
    if error.errno == errno.ENOENT and path.is_symlink():
        raise RunError(
            f"{path}: is a link to {os.readlink(path)}, which does not exist; mount or restore it, then run again"
        ) from None
    if error.errno not in DAMAGED:
        raise unreadable(path, error) from None


def refuse_removed(path: Path) -> None:
    """Raises RunError for a checkpoint that is gone: a run that trains keeps few (checkpoints.keep_last)."""
    if not path.exists():
        raise RunError(f"{path}: was removed meanwhile, as its run keeps few; run the same command again") from None


# ------------------------------------------------------------------------------------------------------ verification


def refuse_newer(place: Path, content: Any) -> None:
    """Raises InputError for the content of a manifest or state.json of a later format: not damage, so nothing is set aside."""
    saved = content.get("format") if isinstance(content, dict) else None
    if type(saved) is int and saved > FORMAT:
        raise InputError(
            f"{place}: saved by a newer version of emergence-train (format {saved}; this one reads up to {FORMAT}); use that "
            f"version, or move {place.parent.name} away: the one before it is used, or the run starts over"
        )


def manifest(path: Path) -> list[dict]:
    """The entries (file, bytes, sha256) of a checkpoint's manifest.

    Raises ValueError for a damaged manifest, RunError for an unreadable one, InputError for one of a newer version.
    """
    place = path / MANIFEST
    try:
        about = place.stat()
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("is no file")
        if about.st_size > MOST_STATE:
            raise ValueError(f"has more than {MOST_STATE:,} bytes")
        content = json.loads(read_text(place))
        refuse_newer(place, content)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r} is not known to this version")
        if step_name(content["step"]) != path.name:
            raise ValueError(f"is of step {content['step']}")
        entries = content["files"]
        for entry in entries:
            name, size, digest = entry["file"], entry["bytes"], entry["sha256"]
            if Path(name).name != name or name in (".", "..", MANIFEST):
                raise ValueError(f"names a file outside the checkpoint: {name!r}")
            if type(size) is not int or size < 0 or not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise ValueError(f"has a malformed entry for {name!r}")
        names = [entry["file"] for entry in entries]
        if len(set(names)) != len(names) or STATE not in names:
            raise ValueError("does not list each file once")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, OSError):
            refuse_unreadable(place, error)
        raise ValueError(f"{place}: cannot be used ({type(error).__name__}: {' '.join(str(error).split())})") from None
    return entries


def problems(path: Path, share: slice = slice(None), without: str | None = None) -> list[str]:
    """Verify a checkpoint, or the `share` of its files, `without` one: one line per missing, truncated or altered file.

    Raises RunError where they cannot be read, InputError where a newer version saved them.
    """
    try:
        entries = [entry for entry in manifest(path)[share] if entry["file"] != without]
    except ValueError as error:
        return [str(error)]

    def look(entry: dict) -> str | None:
        file = path / entry["file"]
        try:
            size = file.stat().st_size
            if size != entry["bytes"]:
                return f"{file}: has {size} bytes instead of {entry['bytes']}"
            if files.sha256(file) != entry["sha256"]:
                return f"{file}: was altered (checksum)"
        except OSError as error:
            refuse_unreadable(file, error)
            if isinstance(error, FileNotFoundError):
                return f"{file}: is missing"
            return f"{file}: cannot be read ({error.strerror or error})"
        return None

    with ThreadPoolExecutor(8) as pool:
        return [problem for problem in pool.map(look, entries) if problem]


def size(path: Path) -> int:
    """Size of a checkpoint in bytes, from its manifest."""
    return sum(entry["bytes"] for entry in manifest(path))


def newest(run: Path, step: int | None = None) -> Path:
    """Path of the verified checkpoint of `step`, by default the newest one.

    Raises InputError where there is none, or it is damaged: an older one would answer another question unasked.
    """
    candidates = complete(run / "checkpoints")
    chosen = candidates[-1:] if step is None else [path for path in candidates if path.name == step_name(step)]
    if not chosen:
        steps = [str(step_of(path)) for path in candidates]
        there = f"has states of steps {', '.join(steps)}" if steps else "holds no state (checkpoints.save_state)"
        raise InputError(f"{run}: has no checkpoint{'' if step is None else f' of step {step}'}; it {there}")
    if wrong := problems(chosen[0]):
        if not chosen[0].exists():  # a run that trains has removed it, and has a newer one
            return newest(run, step)
        whole = (step_of(path) for path in reversed(candidates) if path != chosen[0] and not problems(path))
        other = next(whole, None)
        raise InputError(
            f"{wrong[0]}; restore it{'' if other is None else f', or choose step {other}, which is whole'}"
        )
    return chosen[0]


# ----------------------------------------------------------------------------------------------------------- writing


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> dict:
    """Write and fsync a safetensors file, hashing it on the way; return its entry in the manifest.

    Not by the safetensors library, which would hold a shard in memory twice, and the checksum would read it again. The
    format: 8 bytes with the header's length, a JSON header, the raw little-endian data.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    place = 0
    for name, tensor in tensors.items():
        end = place + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest, written = hashlib.sha256(), 0
    # pieces written and not yet hashed; few, since they may be copies
    ahead: queue.Queue = queue.Queue(4)

    def work() -> None:
        while (data := ahead.get()) is not None:
            digest.update(data)

    hashing = threading.Thread(target=work, name="checksum", daemon=True)
    hashing.start()
    try:
        with open(path, "wb") as file:
            for data in _pieces(struct.pack("<Q", len(text)) + text, tensors):
                ahead.put(data)  # hashing and writing both release the GIL
                file.write(data)
                written += len(data)
            file.flush()
            files.fsync(file)
    finally:
        ahead.put(None)
        hashing.join()
    return {"file": path.name, "bytes": written, "sha256": digest.hexdigest()}


def _pieces(head: bytes, tensors: dict[str, Tensor]) -> Iterator[bytearray | memoryview]:
    """The bytes of a file in pieces of at most CHUNK: small tensors concatenated, large ones split without a copy."""
    gathered = bytearray(head)
    for tensor in tensors.values():
        data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
        if len(data) < SMALL:
            gathered += data
        if len(data) >= SMALL or len(gathered) >= CHUNK:
            yield gathered
            gathered = bytearray()
        if len(data) >= SMALL:
            for begin in range(0, len(data), CHUNK):
                yield data[begin : begin + CHUNK]
    yield gathered


def write_index(path: Path, held: dict[str, Held]) -> dict:
    """Write and fsync the index of shards; return its entry in the manifest."""
    return write_tensors(path / INDEX, *Index.of(held).content())


def write_manifest(path: Path, step: int, entries: list[dict]) -> None:
    files.write_json(path / MANIFEST, {"format": FORMAT, "step": step, "files": entries})


# ----------------------------------------------------------------------------------------------------------- reading


class State(BaseModel):
    """state.json: what is read from it, and what each must be. Later versions may say more."""

    model_config = ConfigDict(strict=True, extra="allow")

    format: int = Field(default=FORMAT, ge=1)
    step: int = Field(ge=0)
    parameters: dict[str, list[Annotated[int, Field(ge=0)]]]
    world_size: int = Field(default=1, ge=1)
    updates: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    loop: dict[str, Any] = {}


def read_state(path: Path) -> dict:
    """state.json of a checkpoint that has been verified.

    Raises:
        InputError: its checksum is right and it says what no checkpoint of this step can say, or a newer version saved it.
    """
    place = path / STATE
    try:
        if place.stat().st_size > MOST_STATE:
            raise ValueError(f"has more than {MOST_STATE:,} bytes")
        content = json.loads(read_text(place))
        refuse_newer(place, content)
        step = State.model_validate(content).step
        if step != step_of(path):
            raise ValueError(f"is of step {step}")
    except (OSError, ValueError, RecursionError) as error:
        refuse_removed(path)
        if isinstance(error, ValidationError):
            problem = error.errors()[0]
            reason = f"{'.'.join(map(str, problem['loc'])) or 'it'}: {problem['msg']}"
        else:
            reason = " ".join(str(error).split())
        raise InputError(
            f"{place}: is no state of this checkpoint ({reason}); move {path.name} away: the one before it is used, "
            f"or the run starts over"
        ) from None
    return content


def entries(path: Path) -> list[dict]:
    """The manifest of a verified checkpoint. Raises RunError where it was removed since, InputError where it was damaged."""
    try:
        return manifest(path)
    except ValueError as error:
        refuse_removed(path)
        raise InputError(str(error)) from None
