"""What a file system may hold after a power cut, given the operations before it.

Promised is what POSIX lets a program rely on, and no more:

- fsync of a file makes its data and length durable; not its name.
- fsync of a directory makes the names in it durable; of what is moved between two directories, once both are synced.
- An fsync of a file that fails leaves what was not yet on the disk as lost as if it had never been written, and no later
  one says so (Linux takes the pages for clean).
- A change of a name (create, rename, link, unlink) happens or does not; of two changes of one name not the later alone.

Everything else since then is left to chance, each by itself: any set of the changes of names; of each file any of the lengths
it has had or one cut at a page; each changed page (512 bytes, a disk's sector, or 4,096) new, old or, beyond the old end,
zeros. In the `ordered` subset names change in the order in which they were changed (the journals of ext4, xfs, btrfs);
data are as free as before: that of delayed allocation.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from faults.disk import Operation

PAGES = (512, 4096)
FEW = 6  # pages of which all sets are tried
Tree = dict[str, bytes | None]  # by relative path; None: a directory


@dataclass(eq=False)
class File:
    """A file's content: on the disk, as programs see it, and each in between since the last fsync."""

    durable: bytes = b""
    current: bytes = b""
    since: list[bytes] = field(default_factory=list)
    lost: bool = False  # an fsync has failed

    def write(self, offset: int, data: bytes) -> None:
        self.set(self.current[:offset].ljust(offset, b"\0") + data + self.current[offset + len(data) :])

    def truncate(self, size: int) -> None:
        self.set(self.current[:size].ljust(size, b"\0"))

    def set(self, content: bytes) -> None:
        self.current = content
        self.since.append(content)

    def sync(self) -> None:
        if not self.lost:
            self.durable, self.since = self.current, []

    def versions(self, rng: random.Random, limit: int) -> tuple[list[bytes], bool]:
        """What a power cut may leave of it -> at most `limit` contents, and whether these are all of the model."""
        outcomes = dict.fromkeys([self.durable, self.current])
        whole = True
        for content, page in itertools.product(self.since, PAGES):
            old = self.durable.ljust(len(content), b"\0")[: len(content)]
            pages = [at for at in range(0, len(content), page) if content[at : at + page] != old[at : at + page]]
            sets, complete = _subsets(pages, rng)
            whole = whole and complete
            for chosen in sets:
                torn = bytearray(old)
                for at in chosen:
                    torn[at : at + page] = content[at : at + page]
                outcomes[bytes(torn)] = None
            cuts = [at for at in range(page, len(content), page) if at > len(self.durable)]
            for at in cuts if len(cuts) <= FEW else rng.sample(cuts, FEW):
                outcomes[content[:at]] = None
            whole = whole and len(cuts) <= FEW
        if len(outcomes) > limit:
            rest = list(outcomes)[2:]
            return [self.durable, self.current, *rng.sample(rest, limit - 2)], False
        return list(outcomes), whole


def _subsets(pages: list[int], rng: random.Random) -> tuple[list[list[int]], bool]:
    """Sets of pages that reached the disk: all, or of many pages none, all, all but one, one alone, and some by chance."""
    if len(pages) <= FEW:
        return [list(s) for n in range(len(pages) + 1) for s in itertools.combinations(pages, n)], True
    picked = [pages[0], pages[-1], *rng.sample(pages, 3)]
    sets = [[], pages, *([p] for p in picked), *([q for q in pages if q != p] for p in picked)]
    return sets + [[p for p in pages if rng.random() < share] for share in (0.1, 0.5, 0.9)], False


@dataclass(eq=False)
class Folder:
    durable: dict[str, "File | Folder"] = field(default_factory=dict)
    current: dict[str, "File | Folder"] = field(default_factory=dict)


Edit = tuple[Folder, str, File | Folder | None]


@dataclass(eq=False)
class Change:
    """One change of names, which happens or does not; `unsynced`: the directories whose fsync it waits for."""

    edits: list[Edit]
    unsynced: set[Folder]

    def names(self) -> set[tuple[int, str]]:
        return {(id(folder), name) for folder, name, _ in self.edits}

    def apply_to(self, entries: dict[int, dict]) -> None:
        for folder, name, node in self.edits:
            if node is None:
                entries[id(folder)].pop(name, None)
            else:
                entries[id(folder)][name] = node


class FileSystem:
    """Everything under one directory, `root`, which is there and durable before the first operation."""

    def __init__(self, root: str) -> None:
        self.path, self.root = PurePosixPath(root), Folder()
        self.folders = [self.root]
        self.open: dict[tuple[int, int], File | Folder] = {}
        self.names: dict[tuple[int, int], str] = {}  # under which they were opened
        self.pending: list[Change] = []

    # ------------------------------------------------------------------------------------------------ operations

    def apply(self, op: Operation) -> None:
        """What an operation of a trace does."""
        at = (op.process, op.descriptor)
        if op.name in ("create", "open", "empty"):
            self.open[at], self.names[at] = self._opened(op), op.path
        elif op.name == "close":
            self.open.pop(at, None)
        elif op.name == "write":
            self.open[at].write(op.number, op.data)
        elif op.name == "truncate":
            self.open[at].truncate(op.number)
        elif op.name == "fsync":
            self._sync(self.open[at])
        elif op.name == "unsynced":
            if isinstance(node := self.open[at], File):
                node.lost = True
        elif op.name != "mark":
            self._rename(op)

    def name_of(self, op: Operation) -> str:
        """The path under which the file of an operation was opened."""
        return self.names[op.process, op.descriptor]

    def _opened(self, op: Operation) -> File | Folder:
        if op.path == str(self.path):
            return self.root
        folder, name = self._parent(op.path)
        if name not in folder.current:
            self._change([(folder, name, File())])
        elif op.name == "empty":
            folder.current[name].truncate(0)
        return folder.current[name]

    def _rename(self, op: Operation) -> None:
        if op.name == "link" and not PurePosixPath(op.path).is_relative_to(self.path):  # of a file that is on the disk
            content = Path(op.path).read_bytes()
            there, new = self._parent(op.other)
            self._change([(there, new, File(content, content))])
            return
        folder, name = self._parent(op.path)
        if op.name == "mkdir":
            self.folders.append(produced := Folder())
            self._change([(folder, name, produced)])
        elif op.name in ("unlink", "rmdir"):
            self._change([(folder, name, None)])
        else:
            there, new = self._parent(op.other)
            node = folder.current[name]
            self._change([(there, new, node)] + ([(folder, name, None)] if op.name == "rename" else []))

    def _parent(self, path: str) -> tuple[Folder, str]:
        *above, name = PurePosixPath(path).relative_to(self.path).parts
        folder = self.root
        for part in above:
            folder = folder.current[part]
        return folder, name

    def _change(self, edits: list[Edit]) -> None:
        change = Change(edits, {folder for folder, _, _ in edits})
        change.apply_to({id(folder): folder.current for folder in change.unsynced})
        self.pending.append(change)

    def _sync(self, node: File | Folder) -> None:
        if isinstance(node, File):
            node.sync()
            return
        durable, names = [], set()
        for change in self.pending:
            change.unsynced.discard(node)
        for change in reversed(self.pending):  # what is durable takes with it what it rests on
            if not change.unsynced or change.names() & names:
                durable.append(change)
                names |= change.names()
        for change in reversed(durable):
            change.apply_to({id(folder): folder.durable for folder, _, _ in change.edits})
            self.pending.remove(change)

    # ---------------------------------------------------------------------------------------------------- states

    def now(self) -> Tree:
        """What programs see."""
        return {path: node if node is None else node.current for path, node in self._walk(lambda f: f.current)}

    def after_power_cut(self, rng: random.Random, limit: int) -> tuple[list[tuple[Tree, bool]], bool]:
        """Trees that a power cut now may leave, at most about `limit`, each with whether it is of the `ordered` subset; and
        whether these are all of the model."""
        subsets, whole = self._subsets(rng, limit)
        outcomes = []
        each = max(4, 2 * limit // len(subsets))
        for chosen in subsets:
            entries = {id(folder): dict(folder.durable) for folder in self.folders}
            for number in chosen:
                self.pending[number].apply_to(entries)
            places = list(self._walk(lambda f, entries=entries: entries[id(f)]))
            trees, complete = _contents(places, rng, each)
            whole = whole and complete
            outcomes += [(tree, chosen == list(range(len(chosen)))) for tree in trees]
        return outcomes, whole

    def _walk(self, entries_of) -> Iterator[tuple[str, File | None]]:
        waiting: list[tuple[str, Folder]] = [("", self.root)]
        while waiting:
            prefix, folder = waiting.pop()
            for name, node in sorted(entries_of(folder).items()):
                yield prefix + name, None if isinstance(node, Folder) else node
                if isinstance(node, Folder):
                    waiting.append((f"{prefix}{name}/", node))

    def _subsets(self, rng: random.Random, limit: int) -> tuple[list[list[int]], bool]:
        """Sets of the pending changes that may be on the disk, by number: each with what it rests on."""
        names = [change.names() for change in self.pending]
        before = [[i for i in range(j) if names[i] & names[j]] for j in range(len(names))]
        sets: list[list[int]] = [[]]
        for j, needed in enumerate(before):
            sets += [[*chosen, j] for chosen in sets if set(needed) <= set(chosen)]
            if len(sets) > limit:
                break
        else:
            return sets, True
        lengths = range(len(names) + 1)  # of those that are in order
        some = {(), tuple(lengths[:-1]), *(tuple(range(n)) for n in rng.sample(lengths, min(len(lengths), limit // 2)))}
        for _ in range(20 * limit):
            if len(some) >= limit:
                break
            share, chosen = rng.choice((0.2, 0.5, 0.8)), []
            for j, needed in enumerate(before):
                if set(needed) <= set(chosen) and rng.random() < share:
                    chosen.append(j)
            some.add(tuple(chosen))
        return [list(chosen) for chosen in sorted(some)], False


def _contents(places: list[tuple[str, File | None]], rng: random.Random, limit: int) -> tuple[list[Tree], bool]:
    """The trees of these names, with what the files may hold. Of files with a hidden name, or in a hidden directory, which no
    reader opens, only the old content and the new."""
    choices, whole = [], True
    for path, node in places:
        if node is None or not node.since:
            choices.append([None if node is None else node.durable])
        elif any(part.startswith(".") for part in path.split("/")):
            choices.append(list(dict.fromkeys([node.durable, node.current])))
        else:
            versions, complete = node.versions(rng, limit)
            choices.append(versions)
            whole = whole and complete
    number = 1
    for versions in choices:
        number *= len(versions)
    if number <= limit:
        picked = itertools.product(*choices)
    else:
        first = [tuple(versions[k % len(versions)] for versions in choices) for k in range(2)]  # all old, all new
        picked, whole = first + [tuple(map(rng.choice, choices)) for _ in range(limit - 2)], False
    return [dict(zip((path for path, _ in places), chosen)) for chosen in picked], whole
