"""Preparing a corpus: MB of text per CPU second and memory, against `datasets` with the same tokenizer.

    python benchmarks/speed/prepare.py [--megabytes 100] [--cases ordinary,tiny,files,giant] [--out FILE]

Each case is prepared by one process: ours (`emergence-train prepare`, one worker: tokens, held-out windows, checksums) and, of
the first case, `datasets` (load_dataset and map with tokenizers' encode_batch_fast, ids written as Arrow). CPU seconds of the
process and its children, since wall time on a shared machine is not comparable; memory is the greatest resident set.
"""

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

OURS = """
import sys
from pathlib import Path
from emergence_train.config import Data
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


def texts() -> list[str]:
    """Documents of the embedded sample."""
    from emergence_train.config import Source
    from emergence_train.data.sources import documents, sample_domains

    return [text for name in sample_domains() for text in documents(Source(domain="d", sample=name))]


def write(case: str, folder: Path, megabytes: float) -> tuple[str, int]:
    """-> (the pattern of the files, bytes of text)."""
    sample, size, number = texts(), 0, 0
    if case == "tiny":
        lines = [piece for text in sample for piece in text.split("\n") if piece.strip()]
        with (folder / "a.jsonl").open("w") as file:
            while number < 1_000_000:
                text = f"{number} {lines[number % len(lines)][:80]}"
                file.write(json.dumps({"text": text}) + "\n")
                size, number = size + len(text.encode()), number + 1
        return f"{folder}/a.jsonl", size
    if case == "giant":
        with (folder / "a.txt").open("w") as file:
            while size < 200e6:
                size += file.write(sample[number % len(sample)] + "\n\n")
                number += 1
        return f"{folder}/a.txt", (folder / "a.txt").stat().st_size
    count = 10_000 if case == "files" else 1
    files = [(folder / f"{i:05d}.jsonl").open("w") if count == 1 else None for i in range(count)]
    while size < megabytes * 1e6:
        text = f"{number}\n{sample[number % len(sample)]}"
        line = json.dumps({"text": text}) + "\n"
        if count == 1:
            files[0].write(line)
        else:
            with (folder / f"{number % count:05d}.jsonl").open("a") as file:
                file.write(line)
        size, number = size + len(text.encode()), number + 1
    if count == 1:
        files[0].close()
    return f"{folder}/*.jsonl", size


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
    parser.add_argument(
        "--megabytes", type=float, default=100.0, help="of text, in the cases that do not say themselves"
    )
    parser.add_argument("--cases", default="ordinary,tiny,files,giant")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "cpu" / "prepare.json")
    arguments = parser.parse_args()
    import torch

    from emergence_train.data import tokenizer
    from emergence_train.recorder.environment import environment

    encoder = tokenizer.train(iter(texts()), 4096)
    record = {
        "utc": datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S"),
        "command": ["python", Path(sys.argv[0]).name, *sys.argv[1:]],
        "environment": environment(torch.device("cpu")),
        "load_average": round(os.getloadavg()[0], 1),
        "rows": [],
    }
    for case in arguments.cases.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            encoder.save(str(folder / "tokenizer.json"))
            pattern, size = write(case, folder, arguments.megabytes)
            programs = {"ours": OURS} | ({"datasets": DATASETS} if case == "ordinary" else {})
            for name, program in programs.items():
                row = {"case": case, "who": name, "megabytes": round(size / 1e6, 1), **run(program, folder, pattern)}
                if "cpu_seconds" in row:
                    row["megabytes_a_cpu_second"] = round(size / 1e6 / row["cpu_seconds"], 2)
                record["rows"].append(row)
                print(row, flush=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(arguments.out)
    return 0


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.exit(main())
