"""`emergence-train doctor`: what this machine has, what will be used, what is missing."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable

from emergence_train.cluster import launcher, slurm
from emergence_train.errors import InputError

OPTIONAL = {
    "datasets": ("datasets", "pip install 'emergence-train[hub]'", "Hugging Face hub data sets"),
    "transformers": ("transformers", "pip install 'emergence-train[bench]'", "benchmarks against Llama"),
}


def doctor(say: Callable[[str], None] | None) -> dict:
    """Look, tell each finding through `say`, and return them all."""
    import torch

    from emergence_kernels import available_backends, resolve_backend
    from emergence_kernels.attention import flash as flash_backend
    from emergence_kernels.backends import library

    say = say or (lambda line: None)
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    found = {
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
    say(f"python      {found['python']}, " + ", ".join(f"{k} {v or 'MISSING'}" for k, v in found["versions"].items()))
    say(f"processors  {found['processors']}, {found['free_disk_gb']} GB of disk free here")
    say("gpus        " + (", ".join(found["gpus"]) or "none: training runs on the processor (gloo), in fp32 at best"))
    for op, state in found["kernels"].items():
        others = [f"{name}: {why}" for name, why in state["backends"].items() if why != "yes"]
        say(f"kernel      {op}: {state['chosen']}" + (f"  (not {'; not '.join(others)})" if others else ""))
    for backend, built in found["compiled"].items():
        say(f"compiled    csrc/ for {backend}: {built}")
    generations = [str(generation) for generation in sorted(flash_backend.installed())]
    found["optional"]["flash-attn"] = " and ".join(generations) or None
    say(
        "optional    flash-attn "
        + (
            found["optional"]["flash-attn"]
            or "missing: PyTorch's kernels stand in for it; pip install 'emergence-train[flash]'"
        )
    )
    for module, (package, remedy, what) in OPTIONAL.items():
        there = importlib.util.find_spec(module) is not None
        found["optional"][package] = _version(package) if there else None
        say(f"optional    {package} " + (found["optional"][package] or "?" if there else f"missing: {what}; {remedy}"))
    say(f"wandb       {found['wandb']}")
    launch = found["launch"]
    say(f"launcher    {launch['launcher']}" + "".join(f"; {launch[key]}" for key in ("meeting", "note") if launch[key]))
    return found


def _launch() -> dict:
    """Who has started this process, as the training would see it."""
    try:
        place = launcher.find()
    except InputError as error:
        return {"launcher": "not recognised", "meeting": None, "note": str(error)} | slurm.job(os.environ)
    task = place.task
    meeting = (
        f"meets the others at port {task.ports[0]} of {task.node or 'a node that MASTER_ADDR must name'}"
        if task
        else None
    )
    return {
        "launcher": place.launcher,
        "rank": place.rank,
        "world": place.world,
        "local_rank": place.local_rank,
        "meeting": meeting,
        "note": place.note,
    } | slurm.job(os.environ)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
