"""Saving and loading the engine's state, so that a checkpoint is whole or absent.

DeepSpeed's ranks write into a temporary directory; when all have finished, rank 0 lists every file with size and
SHA-256 in manifest.json, and renames the directory. What has no manifest, or does not match it, is not a checkpoint.
"""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from emergence_train import files
from emergence_train.distributed import Ranks, barrier, from_first_rank
from emergence_train.errors import InputError
from emergence_train.training.logs import step_name

STATE = "state"  # DeepSpeed's tag: the directory inside ours


def save(engine, directory: Path, step: int, ranks: Ranks, client_state: dict, *, keep_older: bool) -> Path:
    """Write checkpoints/step-XXXXXXXXXX of run `directory`; all ranks call it. Returns its path."""
    folder = directory / "checkpoints"
    final, temporary = folder / step_name(step), folder / f".{step_name(step)}.tmp"
    from_first_rank(lambda: _fresh(temporary))
    engine.save_checkpoint(str(temporary), tag=STATE, client_state=client_state, save_latest=False)
    barrier()

    def finish() -> None:
        manifest = _manifest(temporary)
        files.write_json(temporary / "manifest.json", {"step": step, "world_size": ranks.world, "files": manifest})
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        files.fsync_directory(folder)
        if not keep_older:
            for older in _complete(folder):
                if older != final:
                    shutil.rmtree(older)

    from_first_rank(finish)
    return final


def load_newest(engine, directory: Path, ranks: Ranks, say) -> dict | None:
    """Load the newest checkpoint that matches its manifest and return its client state; None where there is none."""
    chosen = from_first_rank(lambda: _newest_good(directory / "checkpoints", ranks.world, say))
    if chosen is None:
        return None
    _, client_state = engine.load_checkpoint(str(chosen), tag=STATE)
    return client_state


def problems(path: Path) -> list[str]:
    """What is wrong with a checkpoint: a line for each missing, short or altered file."""
    try:
        entries = json.loads((path / "manifest.json").read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        return [f"{path}: manifest.json cannot be read ({error})"]

    def look(entry: dict) -> str | None:
        file = path / entry["file"]
        if not file.is_file():
            return f"{file}: is missing"
        if file.stat().st_size != entry["bytes"]:
            return f"{file}: has {file.stat().st_size} bytes instead of {entry['bytes']}"
        if files.sha256(file) != entry["sha256"]:
            return f"{file}: was altered (checksum)"
        return None

    with ThreadPoolExecutor(8) as pool:
        return [problem for problem in pool.map(look, entries) if problem]


def _newest_good(folder: Path, world: int, say) -> Path | None:
    for path in reversed(_complete(folder)):
        wrong = problems(path)
        if wrong:
            say(f"checkpoint set aside: {wrong[0]}")
            path.rename(path.with_name(f"damaged-{path.name}"))
            continue
        saved_by = json.loads((path / "manifest.json").read_text())["world_size"]
        if saved_by != world:
            raise InputError(f"{path}: was saved by {saved_by} processes, this is {world}; start it with {saved_by}")
        return path
    return None


def _complete(folder: Path) -> list[Path]:
    """Checkpoint directories with a manifest, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "manifest.json").is_file())


def _fresh(temporary: Path) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)


def _manifest(root: Path) -> list[dict]:
    paths = sorted(path for path in root.rglob("*") if path.is_file())

    def describe(path: Path) -> dict:
        files.fsync_file(path)
        return files.describe(root, path)

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(describe, paths))
