"""Compiles csrc/ into shared libraries, which lie in libraries/ beside this file.

    python -m emergence_kernels.backends.build cuda        csrc/cuda by nvcc, for sm_80 and sm_90a
    python -m emergence_kernels.backends.build cpu         csrc/cpu by g++, for this kind of CPU
    python -m emergence_kernels.backends.build emulated    csrc/cuda and csrc/checks by g++: the GPU's source emulated on a CPU
    python -m emergence_kernels.backends.build checks      csrc/checks by nvcc: kernels for tests only

Only torch's stable ABI is used, so a library works with every torch from 2.10 on and every Python; torch's headers may be
those of a CPU build. Used by setup.py, the Makefile and the tests. Objects are cached under build/ by a hash of their inputs.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).resolve().parents[3] / "csrc"
# For each kind: the source folders of csrc/, and the folders of further headers.
KINDS = {"cuda": ("cuda",), "cpu": ("cpu",), "emulated": ("cuda", "checks"), "checks": ("checks",)}
HEADERS = {kind: ("common", "emulator") if kind == "emulated" else ("common",) for kind in KINDS}
SUFFIXES = (".cu", ".cpp")
ARCHITECTURES = ("80", "90a")
WERROR_VARIABLE = "EMERGENCE_CUDA_WERROR"
ARCHITECTURES_VARIABLE = "EMERGENCE_CUDA_ARCHITECTURES"  # such as "80,90a,100a"
REINSTALL = "in a checkout: pip install --no-build-isolation ."  # of an installation, which has no source
TORCH_ABI = "0x020a000000000000"  # 2.10
COMMON = ["-std=c++20", f"-DTORCH_TARGET_VERSION={TORCH_ABI}"]
FLAGS = {
    "cuda": ["-O3", "-DUSE_CUDA", "-Xcompiler", "-fPIC,-Wall"],
    # Loops vectorise without errno and floating-point traps; the order of sums is unchanged.
    # Vectors are only passed to what is inlined: their ABI does not matter.
    "cpu": [
        *("-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-fPIC"),
        *("-Wall", "-Wextra", "-Wno-psabi", "-x", "c++"),
    ],
    # Ubuntu's g++ fortifies where it optimises, and a fortified longjmp between stacks aborts.
    "emulated": ["-x", "c++", "-O1", "-U_FORTIFY_SOURCE", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas"],
}
FLAGS["checks"] = FLAGS["cuda"]


class BuildError(RuntimeError):
    """The library could not be built; the message is one line."""


def library(kind: str) -> Path:
    """Path of the library of a kind."""
    return Path(__file__).with_name("libraries") / f"emergence_{kind}.so"


def nvcc() -> str | None:
    """The compiler of CUDA_HOME, else of the path."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")


def host_compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


def torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError(
            "there is no torch to compile against (a build of pip's own needs --no-build-isolation to see it)"
        )
    return Path(spec.submodule_search_locations[0])


def torch_version() -> str:
    """The text of torch/version.py, which has its CUDA version."""
    return (torch_folder() / "version.py").read_text(encoding="utf-8")


def architectures() -> tuple[str, ...]:
    """The architectures of EMERGENCE_CUDA_ARCHITECTURES, else sm_80, sm_90a, and sm_100a where nvcc knows it."""
    if asked := os.environ.get(ARCHITECTURES_VARIABLE):
        return tuple(name.strip().removeprefix("sm_") for name in asked.split(",") if name.strip())
    known = _output([nvcc() or "nvcc", "--list-gpu-code"])
    return ARCHITECTURES + (("100a",) if "sm_100" in known else ())


def strict() -> list[str]:
    """nvcc's flags that make warnings errors, for developers of the kernels. For users a newer nvcc's warnings would fail the
    build."""
    asked = os.environ.get(WERROR_VARIABLE) == "1" or os.environ.get("CI") == "true"
    return ["--Werror", "all-warnings"] if asked else []


def sources(kind: str) -> list[Path]:
    return sorted(path for name in KINDS[kind] for path in (SOURCES / name).rglob("*") if path.suffix in SUFFIXES)


def headers(kind: str) -> list[Path]:
    return sorted(path for name in (*KINDS[kind], *HEADERS[kind]) for path in (SOURCES / name).rglob("*.h"))


def fingerprint(kind: str) -> str | None:
    """12 hex digits for what a library of a kind is made of; None where there is no source."""
    if not (files := [*sources(kind), *headers(kind)]):
        return None
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(SOURCES)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def build(
    kind: str,
    output: Path | None = None,
    *,
    archs: tuple[str, ...] | None = None,
    cache: Path | None = None,
    extra: tuple[str, ...] = (),
) -> str:
    """Compile a library; return the compiler's output (with `extra` = ("-Xptxas", "-v"): registers and spills of every kernel).

    Args:
        kind: one of KINDS. output: the library; by default in libraries/. archs: of nvcc, such as ("80", "90a").

    Raises:
        BuildError: no compiler, no torch, or an error in the source.
    """
    by_nvcc = kind in ("cuda", "checks")
    compiler = nvcc() if by_nvcc else host_compiler()
    if compiler is None:
        raise BuildError("nvcc is not on the path (nor under CUDA_HOME)" if by_nvcc else "g++ is not on the path")
    if not sources(kind):
        raise BuildError(f"{SOURCES} is not there: this installation has no source; {REINSTALL}")
    output, torch = output or library(kind), torch_folder()
    flags, what = [*COMMON, *FLAGS[kind]], kind
    if by_nvcc:
        flags += strict()
        archs = archs or architectures()
        for arch in archs:
            flags += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
        what = " ".join(f"sm_{arch}" for arch in archs)
    lines = _output([compiler, "--version"]).splitlines()
    version = next((line for line in lines if "release" in line), lines[0]).strip()
    flags += extra
    about = f'-DEMERGENCE_BUILD="{what}, {version}, csrc {fingerprint(kind)}"'
    command = [compiler, *flags, "-I", str(SOURCES), "-isystem", str(torch / "include")]
    digest = hashlib.sha256(repr((compiler, version, flags, torch_version())).encode())
    for header in headers(kind):
        digest.update(header.read_bytes())
    cache = cache or SOURCES.parent / "build" / "csrc"
    cache.mkdir(parents=True, exist_ok=True)
    units = [[source] for source in sources(kind)] if by_nvcc else [sources(kind)]
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        objects, logs = zip(*pool.map(lambda unit: _compile(kind, unit, command, about, digest.copy(), cache), units))
    static = ["-cudart", "static"] if by_nvcc else []
    link = [*static, *map(str, objects), f"-L{torch / 'lib'}", "-ltorch_cpu", "-ldl"]
    linked = cache / f"{kind}-{hashlib.sha256(repr(link).encode()).hexdigest()[:16]}.so"
    if not linked.exists():
        with _replaced(linked) as partial:
            _output([compiler, "-shared", *link, "-o", str(partial)])
    output.parent.mkdir(parents=True, exist_ok=True)
    with _replaced(output) as partial:
        shutil.copy(linked, partial)
    return "".join(logs)


def _compile(kind: str, unit: list[Path], command: list[str], about: str, digest: Any, cache: Path) -> tuple[Path, str]:
    """Compile sources as one translation unit, unless the cache has it -> the object, the compiler's output. `about` changes with
    any source, and is for one of them."""
    if any(path.stem == "build_info" for path in unit):
        command = [*command, about]
        digest.update(about.encode())
    for path in unit:
        digest.update(path.read_bytes())
    name = unit[0].stem if len(unit) == 1 else "all"
    compiled = cache / f"{kind}-{name}-{digest.hexdigest()[:16]}.o"
    log = compiled.with_suffix(".log")
    if not (compiled.exists() and log.exists()):
        source, text = (str(unit[0]), None) if len(unit) == 1 else ("-", _joined(unit))
        with _replaced(compiled) as partial:
            log.write_text(_output([*command, "-c", source, "-o", str(partial)], text), encoding="utf-8")
    return compiled, log.read_text(encoding="utf-8")


def _joined(unit: list[Path]) -> str:
    """C++ that includes all sources: g++ spends two thirds of its time on what they have in common.

    Each is in a namespace, for each has names of its own; their headers come first, in none.
    """
    texts = [path.read_text(encoding="utf-8") for path in unit]
    lines = list(dict.fromkeys(line for text in texts for line in re.findall(r"^#include .*", text, re.MULTILINE)))
    lines += [f'namespace unit_{path.stem} {{\n#include "{path}"\n}}' for path in unit]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A file to write, which then takes the path's place, at once and whole."""
    partial = path.with_suffix(f".{os.getpid()}{path.suffix}")
    yield partial
    partial.replace(path)


def _output(command: list[str], text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr + done.stdout).strip().splitlines()
        error = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no output")
        raise BuildError(f"{Path(command[0]).name} failed: {error.strip()}")
    return done.stdout + done.stderr


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile csrc/ into a shared library.")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--arch", help=f"such as 80,90a (default: ${ARCHITECTURES_VARIABLE}, else sm_80 and sm_90a)")
    parser.add_argument("--verbose", action="store_true", help="registers and spills of every kernel")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    archs = tuple(arguments.arch.replace("sm_", "").split(",")) if arguments.arch else None
    extra = ("-Xptxas", "-v") if arguments.verbose and arguments.kind in ("cuda", "checks") else ()
    try:
        log = build(arguments.kind, arguments.out, archs=archs, extra=extra)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(log, end="")
    print(arguments.out or library(arguments.kind))
    return 0


if __name__ == "__main__":
    sys.exit(main())
