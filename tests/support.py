"""Shared by the tests: a small configuration, and running the command line in other processes."""

import contextlib
import fcntl
import importlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

import forkserver

ROOT = Path(__file__).parents[1]
STUDIES = ROOT / "benchmarks" / "studies"
PATIENCE = float(os.environ.get("EMERGENCE_TEST_PATIENCE", "1"))  # how much slower than alone on two cores this may be


def study(name: str, folder: Path = STUDIES):
    """A script of benchmarks/ as a module, with those beside it, as Python runs it."""
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def until(condition: Callable, seconds: float = 60, why: Callable[[], str] = str, every: float = 0.05):
    """Wait until the condition is true, `seconds` times PATIENCE at most; what it gave. `why` is asked where it never is."""
    end = time.monotonic() + seconds * PATIENCE
    while not (value := condition()):
        assert time.monotonic() < end, why()
        time.sleep(every)
    return value


@contextlib.contextmanager
def locked(path: Path):
    """One test process at a time; the others wait."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def assert_same(ours, golden, where: str = "") -> None:
    """Keys in the same order, the same text, numbers to seven digits (sums differ between CPUs in the last ones)."""
    assert type(ours) is type(golden), where
    if isinstance(golden, dict):
        assert list(ours) == list(golden), where
        for key in golden:
            assert_same(ours[key], golden[key], f"{where}.{key}")
    elif isinstance(golden, list):
        assert len(ours) == len(golden), where
        for number, pair in enumerate(zip(ours, golden)):
            assert_same(*pair, f"{where}[{number}]")
    elif isinstance(golden, float):
        assert math.isclose(ours, golden, rel_tol=1e-7, abs_tol=1e-9), (where, ours, golden)
    else:
        assert ours == golden, where


def small_config(data: Path, out: Path) -> dict:
    """A model of 7k parameters on sequences of 32 tokens, two domains and one out-of-distribution."""
    return {
        "name": "run",
        "out": str(out),
        "seed": 3,
        "data": {
            "path": str(data),
            "sequence": 32,
            "tokenizer": {"vocab_size": 300},
            "sources": [
                {"domain": "manuals", "sample": "manuals", "limit_documents": 20, "weight": 2},
                {"domain": "speeches", "sample": "speeches", "limit_documents": 20},
            ],
            "ood": [{"domain": "books", "sample": "books", "limit_documents": 3}],
            "validation": {"sequences": 12, "domain_sequences": 4, "ood_sequences": 5, "fraction": 0.2},
            "workers": 1,
        },
        "model": {"layers": 2, "width": 16, "heads": 2, "kv_heads": 1, "ffn": 24, "max_sequence": 32},
        "training": {
            "tokens": 12 * 8 * 32,
            "batch": 8,
            "micro_batch": 2,
            "precision": "fp32",
            "zero_stage": 1,
            "threads": 1,
            "schedule": {"kind": "cosine", "lr": 0.01, "warmup_tokens": 512},
        },
        "checkpoints": {"every_tokens": 4 * 8 * 32},
        "logging": {"wandb": "disabled", "console_seconds": 0},
    }


def data_of(path: Path, **changes):
    """The small configuration's data section, prepared at `path`."""
    from emergence_train.data_config import Data

    return Data.model_validate(small_config(path, path)["data"] | changes)


def tree(path: Path) -> dict[str, bytes]:
    """Every file under `path` with its content; without files that only record when others were verified."""
    files = {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
    return {name: content for name, content in files.items() if name != "verified.json"}


def command(*arguments: str, processes: int = 0, timeout: float = 240, fresh: bool = False, **environment: str):
    """Run the command line in a process of its own, or in several; returns the finished process (run_python)."""
    return run_python(
        "-m", "emergence_train", *arguments, processes=processes, timeout=timeout, fresh=fresh, **environment
    )


def run_python(*target: str, processes: int = 0, timeout: float = 240, fresh: bool = False, **environment: str):
    """Run `-m module` or a script with its arguments; several processes have torchrun's variables.

    Args:
        processes: how many ranks; 0 is one process without a launcher's variables.
        timeout: seconds, times PATIENCE.
        fresh: a new interpreter, and torchrun itself, in the place of forks of one that has imported everything: for what
            happens before and during the imports, and for torchrun's own doing.

    Returns:
        The finished process; of several the outputs one after another, and the first exit code that is not 0.
    """
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")])
    timeout *= PATIENCE
    variables = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TRITON_INTERPRET"):
        variables.pop(name, None)
    if fresh or not hasattr(os, "fork") or torch.cuda.is_available():
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        start = [sys.executable, *(torchrun if processes else []), *target]
        return subprocess.run(start, capture_output=True, text=True, timeout=timeout, env=variables)
    if not processes:
        return forkserver.run([list(target)], [variables], timeout)[0]
    # As torchrun's agent does, this process keeps the store: the port is found by who listens on it.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    ranks = [variables | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    ended = forkserver.run([list(target)] * processes, ranks, timeout)
    outputs = ["".join(texts) for texts in zip(*((process.stdout, process.stderr) for process in ended))]
    code = next((process.returncode for process in ended if process.returncode), 0)
    return subprocess.CompletedProcess(list(target), code, *outputs)


def metrics(run: Path, kind: str = "train") -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def llama_of(model):
    """transformers' LlamaForCausalLM with the weights of a Decoder whose rotation is full, in its dtype."""
    import torch
    import transformers

    from emergence_train.convert.hf_names import hf_config

    c = model.config
    untied = hf_config(c) | {"tie_word_embeddings": False}
    other = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(untied)).to(model.embedding.weight.dtype)
    weights = {
        "model.embed_tokens.weight": model.embedding.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.head.weight,
    }
    for number, block in enumerate(model.blocks):
        at = f"model.layers.{number}"
        q, k, v = block.attention.qkv.weight.split([c.width, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim])
        gate, up = block.swiglu.gate_up.weight.chunk(2)
        weights |= {
            f"{at}.self_attn.{n}_proj.weight": w
            for n, w in {"q": q, "k": k, "v": v, "o": block.attention.out.weight}.items()
        }
        weights |= {
            f"{at}.mlp.{n}_proj.weight": w
            for n, w in {"gate": gate, "up": up, "down": block.swiglu.down.weight}.items()
        }
        weights[f"{at}.input_layernorm.weight"] = block.attention_norm.weight
        weights[f"{at}.post_attention_layernorm.weight"] = block.swiglu_norm.weight
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(weights.pop(name))
    assert not weights
    return other
