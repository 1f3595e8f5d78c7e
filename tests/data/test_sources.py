"""Which files a source names: each once, by what it is; what is no file is said."""

import os
from pathlib import Path

import pytest

from emergence_train.data import sources
from emergence_train.data_config import Source
from emergence_train.errors import InputError


def listed(*patterns) -> list[str]:
    return [path.name for path in sources.paths(Source(domain="d", files=[str(pattern) for pattern in patterns]))]


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_file_of_two_names_is_one_file(tmp_path, link):
    (tmp_path / "b.txt").write_text("text")
    link(tmp_path / "b.txt", tmp_path / "c.txt")
    assert listed(tmp_path / "*.txt") == listed(tmp_path / "b*", tmp_path / "*") == ["b.txt"]


@pytest.mark.parametrize("number", [0, 7])
def test_files_of_one_inode_number_are_all_read(tmp_path, monkeypatch, number):
    """As some mounts number them: all 0, or two alike in a union of mounts; a link is still the file that it names."""
    stat = Path.stat

    def numbered(self, **given):
        values = list(stat(self, **given))[:10]
        return os.stat_result((values[0], number, *values[2:]))

    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name * 9 * (1 + ord(name)))
    os.symlink(tmp_path / "a.txt", tmp_path / "d.txt")
    monkeypatch.setattr(Path, "stat", numbered)
    assert listed(tmp_path / "*.txt") == ["a.txt", "b.txt", "c.txt"]


def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path):
    for name in ("part[1].txt", "*.txt", "part1.txt"):
        (tmp_path / name).write_text(name)
    assert listed(tmp_path / "part[1].txt") == ["part[1].txt"]
    assert listed(tmp_path / "*.txt") == ["*.txt"]
    assert listed(tmp_path / "p*.txt") == ["part1.txt", "part[1].txt"]


def test_a_link_to_nothing_and_a_pipe_are_said(tmp_path):
    """A corpus whose large files were not fetched is made of such links; without them it would be another corpus."""
    (tmp_path / "a.txt").write_text("text")
    os.symlink(tmp_path / "gone.txt", tmp_path / "b.txt")
    with pytest.raises(
        InputError, match=r"b\.txt: is a link to .*gone\.txt, which cannot be found; restore or remove it"
    ):
        listed(tmp_path / "*.txt")
    (tmp_path / "b.txt").unlink()
    os.mkfifo(tmp_path / "b.txt")
    with pytest.raises(InputError, match=r"b\.txt: is no file"):
        listed(tmp_path / "*.txt")


def test_directories_among_the_matches_are_passed_over(tmp_path):
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "deep/er/a.txt").write_text("text")
    (tmp_path / "b.txt").write_text("text")
    assert listed(tmp_path / "**") == ["b.txt", "a.txt"]
    with pytest.raises(InputError, match="are directories; write a glob"):
        listed(tmp_path / "deep")


def test_a_name_that_is_no_utf8_is_read_whatever_its_kind(tmp_path):
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    row = json.dumps({"text": "read"}).encode()
    for kind, data in ((".jsonl", row), (".jsonl.zst", pa.compress(row, "zstd", asbytes=True)), (".parquet", None)):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")).with_suffix(kind)
        if data is None:
            with open(path, "wb") as file:
                pq.write_table(pa.table({"text": ["read"]}), file)
        else:
            path.write_bytes(data)
        assert list(sources.documents(Source(domain="d", files=[str(path)]))) == ["read"]


def test_a_text_file_in_two_domains_is_refused(tmp_path):
    from support import data_of

    (tmp_path / "a.txt").write_text("text")
    both = [{"domain": name, "files": [str(tmp_path / "a.txt")], "text_field": name} for name in ("one", "two")]
    with pytest.raises(InputError, match="is in the domains 'one' and 'two'"):
        sources.check_overlap(data_of(tmp_path / "out", sources=both, ood=[]))
