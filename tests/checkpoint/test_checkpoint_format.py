"""The files of a checkpoint: safetensors readable by the library, verification of every byte, reading in any layout."""

import errno
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from emergence_train.checkpoint import format as checkpoints
from emergence_train.checkpoint.format import MANIFEST, STATE, complete, newest, problems, step_name
from emergence_train.checkpoint.shards import Shards, read_weights
from emergence_train.errors import InputError, RunError


def make(folder, step=4, world=2, size=10):
    """A checkpoint of one parameter, "w" of `size` elements, cut into `world` shards."""
    path = folder / "checkpoints" / step_name(step)
    path.mkdir(parents=True)
    each, entries = -(-size // world), []
    for rank in range(world):
        values = torch.arange(size, dtype=torch.float32)[rank * each : (rank + 1) * each]
        tensors = {f"weights|{rank * each}|w": values, f"exp_avg|{rank * each}|w": -values}
        tensors["positions"] = torch.full((4, 3), float(rank), dtype=torch.float64)
        entries.append(checkpoints.write_tensors(path / checkpoints.shard_name(rank, world), tensors))
    (path / STATE).write_text(json.dumps({"parameters": {"w": [2, size // 2]}, "step": step}))
    from emergence_train import files

    checkpoints.write_manifest(path, step, [*entries, files.describe(path, path / STATE)])
    return path


def test_a_shard_is_a_safetensors_file(tmp_path, monkeypatch):
    """Small, empty and cut tensors, several dtypes, checked with the library's own reader and hashlib."""
    import hashlib

    monkeypatch.setattr(checkpoints, "CHUNK", 1000)
    monkeypatch.setattr(checkpoints, "SMALL", 200)
    tensors = {
        "a": torch.randn(17, dtype=torch.float32),
        "b": torch.randn(333, 5, dtype=torch.float64),  # larger than a chunk
        "empty": torch.empty(0),
        "transposed": torch.randn(40, 30).T,
        "i": torch.arange(-3, 4),
        "h": torch.randn(8).bfloat16(),
    }
    entry = checkpoints.write_tensors(tmp_path / "x.safetensors", tensors)
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)
    data = (tmp_path / "x.safetensors").read_bytes()
    assert entry == {"file": "x.safetensors", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_write_that_fails_raises_and_leaves_no_thread(tmp_path, monkeypatch):
    """More pieces than wait for their checksum, on a device that is always full."""
    monkeypatch.setattr(checkpoints, "CHUNK", 1000)
    monkeypatch.setattr(checkpoints, "SMALL", 200)
    (tmp_path / "x.safetensors").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        checkpoints.write_tensors(tmp_path / "x.safetensors", {"a": torch.randn(100_000)})
    assert not any(thread.name == "checksum" for thread in threading.enumerate())


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_any_slice_is_read_whatever_the_layout(tmp_path, world):
    shards = Shards(make(tmp_path, world=world))
    for start in range(10):
        for count in range(1, 11 - start):
            assert shards.read("weights", "w", start, count).tolist() == list(range(start, start + count))
    assert shards.kinds == ["exp_avg", "weights"]
    assert [tensor[0, 0].item() for tensor in shards.each("positions")] == list(range(world))
    with pytest.raises(InputError, match="holds 2 of 3 elements"):
        shards.read("weights", "w", 8, 3)


def test_all_weights_as_a_state_dict(tmp_path):
    weights = read_weights(make(tmp_path, world=3))
    assert weights["w"].tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_every_flipped_byte_and_every_truncation_is_found(tmp_path):
    path = make(tmp_path)
    assert problems(path) == []
    for file in sorted(path.iterdir()):
        data = file.read_bytes()
        for place in range(0, len(data), 7):
            file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            reported = problems(path)
            # Of the manifest a byte may be white space or lie within a name; the files it then describes are not there.
            assert reported or json.loads(file.read_text()) == json.loads(data), f"byte {place} of {file.name}"
            file.write_bytes(data[:place])
            assert problems(path), f"{file.name} cut at {place}"
        file.unlink()
        assert problems(path) or file.name == MANIFEST and not complete(path.parent)
        file.write_bytes(data)
    assert problems(path) == []


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "file": st.sampled_from([STATE, "../../../etc/passwd", ".", "", "shard-00000-of-00002.safetensors", "x\0y"])
        | VALUES,
        "bytes": st.integers(-1, 10**30) | VALUES,
        "sha256": st.just("0" * 64) | VALUES,
    },
)


@settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "600")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    content=st.binary(max_size=60)
    | VALUES.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries(
        {
            "format": st.just(1) | VALUES,
            "step": st.just(4) | VALUES,
            "files": st.lists(ENTRY | VALUES, max_size=4) | VALUES,
        }
    ).map(lambda value: json.dumps(value).encode())
)
def test_no_manifest_however_strange_does_more_than_be_refused(tmp_path, content):
    path = tmp_path / "checkpoints" / step_name(4)
    if not path.exists():
        make(tmp_path)
    (path / MANIFEST).write_bytes(content)
    try:
        reported = problems(path)
    except InputError as error:  # not damage: it may be whole
        reported = [str(error)]
        assert json.loads(content)["format"] > checkpoints.FORMAT and "newer version" in reported[0]
    assert reported and all("\n" not in line for line in reported)
    with pytest.raises(InputError):
        newest(tmp_path)


def removed(path: Path) -> None:
    """As a run's retention removes a checkpoint: hidden first."""
    hidden = path.with_name(f".old-{path.name}")
    path.rename(hidden)
    shutil.rmtree(hidden)


@pytest.mark.parametrize(
    "use",
    [
        checkpoints.read_state,
        read_weights,
        checkpoints.entries,
        lambda path: Shards(path).read("weights", "w", 0, 10),
    ],
    ids=["state", "weights", "manifest", "shards"],
)
def test_a_checkpoint_removed_meanwhile_is_said_to_be(tmp_path, use):
    """A training run that keeps few, between the choice and the reading. Nothing is damaged, and there is nothing to move."""
    path = newest(make(tmp_path).parents[1])
    removed(path)
    with pytest.raises(RunError, match=f"{path.name}: was removed meanwhile, .*; run the same command again"):
        use(path)


def test_shards_removed_while_they_are_read_are_said_to_be(tmp_path):
    path = make(tmp_path)
    shards = Shards(path)
    shards.opened.clear()
    removed(path)
    with pytest.raises(RunError, match="was removed meanwhile"):
        shards.read("weights", "w", 0, 10)


def test_a_checkpoint_removed_while_verified_gives_the_next(tmp_path, monkeypatch):
    old, new, verify = make(tmp_path, 4), make(tmp_path, 8), checkpoints.problems

    def problems(path, *given):
        if path == old:
            removed(old)
        return verify(path, *given)

    monkeypatch.setattr(checkpoints, "complete", lambda folder: [p for p in (old, new) if p == old or not old.exists()])
    monkeypatch.setattr(checkpoints, "problems", problems)
    assert newest(tmp_path) == new
    make(tmp_path, 4)
    monkeypatch.undo()
    monkeypatch.setattr(checkpoints, "problems", problems)
    with pytest.raises(InputError, match="has no checkpoint of step 4; it has states of steps 8"):
        newest(tmp_path, 4)


def test_the_newest_complete_checkpoint_is_found(tmp_path):
    make(tmp_path, 4)
    later = make(tmp_path, 8)
    (tmp_path / "checkpoints" / ".step-0000000012.tmp").mkdir()
    assert newest(tmp_path) == later and newest(tmp_path, 4).name == step_name(4)
    (later / checkpoints.shard_name(0, 2)).write_bytes(b"")
    for step in (None, 8):
        with pytest.raises(InputError, match="bytes instead of.*; restore it, or choose step 4, which is whole"):
            newest(tmp_path, step)
    with pytest.raises(InputError, match="has states of steps 4, 8"):
        newest(tmp_path, 6)
    with pytest.raises(InputError, match="holds no state"):
        newest(tmp_path / "elsewhere")
    (tmp_path / "checkpoints" / step_name(4) / checkpoints.shard_name(0, 2)).write_bytes(b"")
    with pytest.raises(InputError, match="restore it$"):
        newest(tmp_path)


@pytest.mark.parametrize("name", [MANIFEST, STATE, "shard-00000-of-00002.safetensors"])
def test_what_cannot_be_read_now_is_not_damaged(tmp_path, monkeypatch, name):
    """Missing permission, a stale handle, too many open files: RunError. An I/O error is damage."""
    path = make(tmp_path)
    plain, fault = open, [0]

    def refusing(file, *given, **named):
        if str(file).endswith(name):
            raise OSError(fault[0], os.strerror(fault[0]), str(file))
        return plain(file, *given, **named)

    monkeypatch.setattr("builtins.open", refusing)
    monkeypatch.setattr(type(path), "open", refusing)  # what read_text calls
    for fault[0] in (errno.EACCES, errno.ESTALE, errno.EMFILE):
        with pytest.raises(RunError, match=f"{name}: cannot be read") as raised:
            problems(path)
        assert "\n" not in str(raised.value)
    fault[0] = errno.EIO
    assert len(problems(path)) == 1 and name in problems(path)[0]


def test_a_checkpoint_without_permission_is_not_absent(tmp_path, monkeypatch):
    path = make(tmp_path)
    plain = os.lstat

    def refusing(file, **named):
        if str(file).endswith("manifest.json"):
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return plain(file, **named)

    monkeypatch.setattr(type(path), "lstat", refusing)
    with pytest.raises(RunError, match="manifest.json: cannot be read"):
        complete(path.parent)


def test_a_link_to_what_is_not_mounted_is_not_an_empty_directory(tmp_path):
    assert complete(tmp_path / "checkpoints") == []
    (tmp_path / "checkpoints").symlink_to(tmp_path / "scratch")
    with pytest.raises(RunError, match="which does not exist"):
        complete(tmp_path / "checkpoints")
    (tmp_path / "scratch").mkdir()
    assert complete(tmp_path / "checkpoints") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be read"):
        complete(tmp_path / "file")


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "shard-00000-of-00001.safetensors"])
def test_a_file_that_is_a_link_to_nothing_is_not_missing(tmp_path, name):
    """On a disk that is not mounted: nothing may be set aside, nor begun anew."""
    path = make(tmp_path)
    file = path / name if (path / name).exists() else next(path.glob("shard-*"))
    file.unlink()
    file.symlink_to("/nowhere/at/all")
    assert complete(path.parent) == [path]
    with pytest.raises(RunError, match="is a link to /nowhere/at/all, which does not exist; mount or restore it"):
        problems(path)


@pytest.mark.parametrize("kind", ["directory", "pipe"])
def test_a_manifest_that_is_no_file_is_damaged(tmp_path, kind):
    path = make(tmp_path)
    (path / "manifest.json").unlink()
    (path / "manifest.json").mkdir() if kind == "directory" else os.mkfifo(path / "manifest.json")
    assert complete(path.parent) == [path] and "is no file" in problems(path)[0]


def hostile(folder, content, step=4):
    """A checkpoint whose manifest is right and whose state.json holds `content`, text or a value."""
    from emergence_train import files

    path = make(folder, step)
    text = content if isinstance(content, str) else json.dumps(content)
    (path / STATE).write_text(text)
    entries = [files.describe(path, shard) for shard in sorted(path.glob("shard-*"))]
    checkpoints.write_manifest(path, step, [*entries, files.describe(path, path / STATE)])
    assert not problems(path)
    return path


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        "[" * 100_000,
        {"step": 10**9, "parameters": {"w": [2, 5]}},
        {"step": 4, "parameters": {"w": [2, -5]}},
        {"step": 4, "parameters": {"w": "2, 5"}},
        {"step": 4, "parameters": {"w": [2, 5]}, "world_size": 0},
        {"step": 4, "parameters": {"w": [2, 5]}, "updates": None},
        {"step": 4, "parameters": {"w": [2, 5]}, "loop": []},
    ],
    ids=range(9),
)
def test_a_state_that_no_checkpoint_has_is_refused(tmp_path, content):
    path = hostile(tmp_path, content)
    with pytest.raises(InputError, match="is no state of this checkpoint") as raised:
        checkpoints.read_state(path)
    assert len(str(raised.value)) < 500 + len(str(path)) and "\n" not in str(raised.value)


@pytest.mark.parametrize("file", [MANIFEST, STATE])
def test_a_newer_format_is_no_damage(tmp_path, file):
    """Of a manifest that has another form as well, and of a state whose checksum is right."""
    path = hostile(tmp_path, {"format": 2, "steps": [4]})
    if file == MANIFEST:
        (path / MANIFEST).write_text(json.dumps({"format": 2, "shards": {}}))
    with pytest.raises(
        InputError,
        match=rf"{file}: saved by a newer version .*\(format 2; this one reads up to 1\).*, or the run starts over",
    ):
        newest(tmp_path)
        checkpoints.read_state(path)


@pytest.mark.parametrize("number", [0, "2", None, 2.0])
def test_a_state_of_no_format_is_refused(tmp_path, number):
    path = hostile(tmp_path, {"format": number, "step": 4, "parameters": {"w": [2, 5]}})
    with pytest.raises(InputError, match="is no state of this checkpoint"):
        checkpoints.read_state(path)


@pytest.mark.parametrize("shape", [[10**6, 10**6], [2**40, 2**40], [11]])
def test_a_shape_that_the_pieces_do_not_fill_allocates_nothing(tmp_path, shape):
    path = hostile(tmp_path, {"step": 4, "parameters": {"w": shape}})
    with pytest.raises(InputError, match="holds 10 of"):
        read_weights(path)


def test_a_state_or_manifest_without_end_is_not_read(tmp_path, monkeypatch):
    path = make(tmp_path)
    monkeypatch.setattr(checkpoints, "MOST_STATE", 20)
    with pytest.raises(InputError, match="more than 20 bytes"):
        checkpoints.read_state(path)
    assert "more than 20 bytes" in problems(path)[0]


@pytest.mark.parametrize(
    "pieces",
    [
        {"weights|x|w": torch.zeros(10)},
        {"weights|-1|w": torch.zeros(10)},
        {"weights|0|w": torch.zeros(2, 5)},
        {"weights|0|w": torch.tensor(1.0)},
        {"weights|0|w": torch.zeros(10, dtype=torch.int64)},
    ],
    ids=range(5),
)
def test_a_piece_that_is_none_is_refused(tmp_path, pieces):
    path = make(tmp_path, world=1)
    entry = checkpoints.write_tensors(path / checkpoints.shard_name(0, 1), pieces)
    from emergence_train import files

    checkpoints.write_manifest(path, 4, [entry, files.describe(path, path / STATE)])
    with pytest.raises(InputError, match="no piece of a parameter"):
        Shards(path)


def test_overlapping_pieces_do_not_replace_a_missing_one(tmp_path):
    path = make(tmp_path, world=1)
    pieces = {
        "weights|0|w": torch.arange(6.0),
        "weights|2|w": torch.arange(2.0, 6.0),
    }  # 10 elements, and 6 to 9 in none
    entry = checkpoints.write_tensors(path / checkpoints.shard_name(0, 1), pieces)
    from emergence_train import files

    checkpoints.write_manifest(path, 4, [entry, files.describe(path, path / STATE)])
    with pytest.raises(InputError, match="holds 6 of 10"):
        Shards(path).read("weights", "w", 0, 10)
    assert Shards(path).read("weights", "w", 1, 4).tolist() == [1.0, 2.0, 3.0, 4.0]
