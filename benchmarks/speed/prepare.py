"""Preparing a corpus: MB of text per CPU second and memory, against `datasets` with the same tokenizer.

    python benchmarks/speed/prepare.py [--megabytes 500] [--cases ordinary,tiny,files,giant-file,giant-row] [--out FILE]

The text is what is installed: source and documentation of Python and its packages and the system's headers, each content once,
so nothing repeats that a cache of words could live on. `ordinary`: --megabytes of it; `tiny`: a million lines of it; `files`:
10,000 files of 100 MB together; `giant-file` and `giant-row`: one document of 200 MB, as a .txt and as a row of a .jsonl. Each
case is prepared by one process: ours (`emergence-train prepare`, one worker: tokens, held-out windows, checksums) and, of the
first case, `datasets` (load_dataset and map with tokenizers' encode_batch_fast, ids written as Arrow). CPU seconds of the
process and what it started, since a shared machine's wall time says little; memory is the greatest resident set.
"""

import argparse
import contextlib
import datetime
import hashlib
import itertools
import json
import os
import resource
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
SUFFIXES = {
    ".c",
    ".cpp",
    ".cu",
    ".h",
    ".hpp",
    ".html",
    ".js",
    ".json",
    ".md",
    ".pl",
    ".pm",
    ".py",
    ".pyi",
    ".rst",
    ".txt",
}
LARGEST = 2_000_000  # bytes of a file: larger ones are tables

OURS = """
import sys
from pathlib import Path
from emergence_train.data_config import Data
from emergence_train.data.prepare import prepare
folder, pattern = sys.argv[1:]
prepare(Data.model_validate({
    "path": folder + "/out", "sequence": 256, "workers": 1,
    "sources": [{"domain": "d", "files": [pattern]}],
    "tokenizer": {"file": folder + "/tokenizer.json"},
    "validation": {"sequences": 64, "domain_sequences": 0},
}), lambda line: print(line, file=sys.stderr))
"""
DATASETS = """
import os, sys
os.environ["TOKENIZERS_PARALLELISM"] = "false"
import datasets
from tokenizers import Tokenizer
folder, pattern = sys.argv[1:]
encoder = Tokenizer.from_file(folder + "/tokenizer.json")
def encode(batch):
    return {"ids": [e.ids for e in encoder.encode_batch_fast(batch["text"], add_special_tokens=False)]}
rows = datasets.load_dataset("json", data_files=pattern, split="train", cache_dir=folder + "/cache")
rows.map(encode, batched=True, remove_columns=rows.column_names).save_to_disk(folder + "/arrow")
"""


def texts() -> Iterator[str]:
    """The text files of Python, its packages and the system's headers and documentation, each content once, in sorted order."""
    seen: set[bytes] = set()
    for root in [*map(sysconfig.get_path, ("purelib", "stdlib", "include")), "/usr/include", "/usr/share/doc"]:
        for path in sorted(Path(root).rglob("*")):
            if path.suffix not in SUFFIXES or path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST:
                continue
            content = path.read_bytes()
            if not content.strip() or (name := hashlib.sha256(content).digest()) in seen:
                continue
            seen.add(name)
            with contextlib.suppress(UnicodeDecodeError):
                yield content.decode("utf-8")


def up_to(rows: Iterable[str], size: float) -> Iterator[str]:
    """The rows until they are `size` bytes."""
    for row in rows:
        if size <= 0:
            return
        size -= len(row.encode())
        yield row


def lines() -> Iterator[str]:
    """A million short documents, all different."""
    again = itertools.chain.from_iterable(itertools.cycle([list(texts())]))
    parts = (line.strip()[:80] for text in again for line in text.split("\n"))
    return (f"{number} {line}" for number, line in zip(range(1_000_000), filter(None, parts)))


def short() -> Iterator[str]:
    """Documents of at most 5,000 characters."""
    from emergence_train.data.readers import pieces

    return (piece for text in texts() for piece in pieces(iter([text]), 5_000))


def write(case: str, folder: Path, megabytes: float) -> tuple[str, int]:
    """-> (the pattern of the files, bytes of text)."""
    if case.startswith("giant"):
        rows: Iterable[str] = ["\n\n".join(up_to(texts(), 200e6))]
    else:
        rows = {"ordinary": up_to(texts(), megabytes * 1e6), "files": up_to(short(), 100e6), "tiny": lines()}[case]
    files, size = 10_000 if case == "files" else 1, 0
    suffix = "txt" if case == "giant-file" else "jsonl"
    for number, text in enumerate(rows):
        with (folder / f"{number % files:05d}.{suffix}").open("a") as file:
            file.write(text if suffix == "txt" else json.dumps({"text": text}) + "\n")
        size += len(text.encode())
    return f"{folder}/*.{suffix}", size


def run(program: str, folder: Path, pattern: str) -> dict:
    """CPU seconds and greatest memory of a process."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    # Not ru_maxrss: a process inherits that of the one that started it.
    wrapped = (
        program + "\nimport resource, json\nboth = [resource.getrusage(w) for w in (resource.RUSAGE_SELF,"
        " resource.RUSAGE_CHILDREN)]\nhighest = open('/proc/self/status').read().split('VmHWM:')[1].split()[0]\n"
        "print(json.dumps([sum(u.ru_utime + u.ru_stime for u in both), int(highest)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", wrapped, str(folder), pattern],
        env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1][:300]}
    seconds, kilobytes = json.loads(done.stdout.strip().splitlines()[-1])
    return {"cpu_seconds": round(seconds, 2), "peak_gb": round(kilobytes * 1024 / 1e9, 3)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=float, default=500.0, help="of text in the ordinary case")
    parser.add_argument("--cases", default="ordinary,tiny,files,giant-file,giant-row")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "cpu" / "prepare.json")
    arguments = parser.parse_args()
    import torch

    from emergence_train.data import tokenizer
    from emergence_train.recorder.environment import environment

    encoder = tokenizer.train(up_to(texts(), 20e6), 4096)
    where = environment(torch.device("cpu"))
    rows = json.loads(arguments.out.read_text())["rows"] if arguments.out.is_file() else []
    for case in arguments.cases.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            encoder.save(str(folder / "tokenizer.json"))
            pattern, size = write(case, folder, arguments.megabytes)
            for name, program in ({"ours": OURS} | ({"datasets": DATASETS} if case == "ordinary" else {})).items():
                row = {"case": case, "who": name, "megabytes": round(size / 1e6, 1), **run(program, folder, pattern)}
                if "cpu_seconds" in row:
                    row["megabytes_a_cpu_second"] = round(size / 1e6 / row["cpu_seconds"], 2)
                row |= {"utc": datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S"), "commit": where["commit"]}
                print(row, flush=True)
                # Each as it is measured, in the place of an earlier one: the whole takes half an hour of a free core.
                rows = [old for old in rows if any(old[key] != row[key] for key in ("case", "who", "megabytes"))] + [
                    row
                ]
                record = {"command": "python benchmarks/speed/prepare.py", "environment": where, "rows": rows}
                arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(arguments.out)
    return 0


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.exit(main())
