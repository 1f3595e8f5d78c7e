"""`emergence-train doctor`: what this machine has, what will be used, what is missing."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable
from typing import Any

from emergence_train.cluster import launcher, slurm
from emergence_train.errors import InputError

OPTIONAL = {
    "datasets": ("datasets", "pip install 'emergence-train[hub]'", "Hugging Face hub data sets"),
    "transformers": ("transformers", "pip install 'emergence-train[bench]'", "benchmarks against Llama"),
}


def doctor(log: Callable[[str], None] | None) -> dict:
    """Inspect the machine, log each line, and return the report."""
    import torch

    from emergence_kernels import available_backends, resolve_backend
    from emergence_kernels.attention import flash as flash_backend
    from emergence_kernels.backends import library

    log = log or (lambda line: None)
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    result: dict[str, Any] = {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("torch", "triton", "deepspeed", "numpy", "wandb", "pyarrow")},
        "processors": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "free_disk_gb": round(shutil.disk_usage(".").free / 1e9, 1),
        "kernels": {
            op: {"chosen": resolve_backend(None, op, torch.device(device)), "backends": backends}
            for op, backends in available_backends(device).items()
        },
        "compiled": {backend: library.describe(backend) for backend in ("cpu", "cuda")},
        "optional": {},
        "wandb": "online" if os.environ.get("WANDB_API_KEY") else "offline unless logged in",
        "launch": _launch(),
    }
    log(f"python      {result['python']}, " + ", ".join(f"{k} {v or 'MISSING'}" for k, v in result["versions"].items()))
    log(f"CPUs        {result['processors']}, {result['free_disk_gb']} GB of disk free here")
    log("gpus        " + (", ".join(result["gpus"]) or "none: training runs on the CPU (gloo), fastest in fp32"))
    for op, state in result["kernels"].items():
        others = [f"{name}: {why}" for name, why in state["backends"].items() if why != "yes"]
        log(f"kernel      {op}: {state['chosen']}" + (f"  (not {'; not '.join(others)})" if others else ""))
    for backend, built in result["compiled"].items():
        log(f"compiled    csrc/ for {backend}: {built}")
    generations = [str(generation) for generation in sorted(flash_backend.installed())]
    result["optional"]["flash-attn"] = " and ".join(generations) or None
    log(
        "optional    flash-attn "
        + (
            result["optional"]["flash-attn"]
            or f"missing ({flash_backend.missing()}): PyTorch's kernels are used instead; pip install 'emergence-train[flash]'"
        )
    )
    for module, (package, remedy, what) in OPTIONAL.items():
        installed = importlib.util.find_spec(module) is not None
        result["optional"][package] = _version(package) if installed else None
        log(
            f"optional    {package} "
            + (result["optional"][package] or "?" if installed else f"missing: {what}; {remedy}")
        )
    log(f"wandb       {result['wandb']}")
    launch = result["launch"]
    log(f"launcher    {launch['launcher']}" + "".join(f"; {launch[key]}" for key in ("meeting", "note") if launch[key]))
    return result


def _launch() -> dict:
    """The launcher of this process, as training detects it."""
    try:
        launch = launcher.find()
    except InputError as error:
        return {"launcher": "not recognised", "meeting": None, "note": str(error)} | slurm.job(os.environ)
    task = launch.task
    rendezvous = (
        f"meets the others at port {task.ports[0]} of {task.node or 'a node that MASTER_ADDR must name'}"
        if task
        else None
    )
    return {
        "launcher": launch.launcher,
        "rank": launch.rank,
        "world": launch.world,
        "local_rank": launch.local_rank,
        "meeting": rendezvous,
        "note": launch.note,
    } | slurm.job(os.environ)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
