"""Packaging of emergence-train: the framework (emergence_train) and its kernels (emergence_kernels, under kernels/).

The kernels are usable without the framework. A CPU install needs no compiler and no CUDA.

Two compiled libraries (csrc/cuda, csrc/cpu) are built if their compiler and torch are in sight (pip hides the installed torch
unless run with --no-build-isolation), and quietly left out otherwise: for this kind of CPU, and for CUDA where torch has it too.
EMERGENCE_CUDA=1 insists on CUDA's, EMERGENCE_CUDA=0 leaves it out. They are no Python modules but libraries on torch's
stable ABI, so a wheel with them serves every Python 3.
"""

import importlib.util
import os
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
LIBRARIES = "emergence_kernels.backends.libraries"
DOCS = ["mkdocs-material>=9.7"]


def builder():
    """backends/build.py by its path: the package itself would import torch."""
    path = HERE / "kernels/emergence_kernels/backends/build.py"
    spec = importlib.util.spec_from_file_location("cuda_build", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wanted() -> list[str]:
    """Of "cpu" and "cuda", those to build."""
    tool, asked = builder(), os.environ.get("EMERGENCE_CUDA")
    try:
        has_cuda = "cuda: Optional[str] = None" not in tool.torch_version()
    except tool.BuildError:  # no torch in sight
        return ["cuda"] if asked not in (None, "0", "") else []
    cuda = asked not in ("0", "") if asked is not None else has_cuda and tool.nvcc() is not None
    return (["cpu"] if tool.host_compiler() else []) + (["cuda"] if cuda else [])


class BuildLibrary(build_ext):
    def get_ext_filename(self, name: str) -> str:
        return os.path.join(*name.split(".")) + ".so"  # of no Python's in particular

    def build_extension(self, extension: Extension) -> None:
        kind = extension.name.rpartition("_")[2]
        builder().build(kind, Path(self.get_ext_fullpath(extension.name)))

    def copy_extensions_to_source(self) -> None:  # of an editable install
        for kind in wanted():
            builder().library(kind).parent.mkdir(exist_ok=True)
        super().copy_extensions_to_source()


class AnyPython(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if self.distribution.ext_modules else (python, abi, platform)


setup(
    name="emergence-train",
    version="0.1.0",
    description="Pretrain language models, log the loss at every position, and forecast where the run is going.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["emergence_train", "emergence_train.*"])
    + find_packages("kernels", include=["emergence_kernels", "emergence_kernels.*"]),
    package_dir={"emergence_kernels": "kernels/emergence_kernels"},
    ext_modules=[Extension(f"{LIBRARIES}.emergence_{kind}", []) for kind in wanted()],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": AnyPython},
    package_data={
        "emergence_train": [
            "data/sample/*",
            "analysis/temporal/prior.json",
            "analysis/temporal/small_runs.json",
            "report/*.html",
            "report/*.css",
            "report/*.js",
        ],
        "emergence_kernels": ["backends/ranking.json"],
    },
    install_requires=[
        "torch>=2.11",
        'triton>=3.6; platform_system == "Linux"',
        "deepspeed>=0.19",
        "numpy>=2.0",
        "wandb>=0.25",
        "pydantic>=2.10",
        "PyYAML>=6.0",
        "pyarrow>=18",
        "pandas>=2.2",
        "scipy>=1.14",
        "matplotlib>=3.9",
        "tokenizers>=0.21",
        "safetensors>=0.5",
        "rich>=13.7",
    ],
    extras_require={
        "flash": ["flash-attn>=2.8"],
        "hub": ["datasets>=4.0", "huggingface_hub>=1.0"],
        "bench": ["transformers>=5.0"],
        "hf": ["transformers>=5.0"],
        "tensorboard": ["tensorboard>=2.16"],
        "lightning": ["lightning>=2.5"],
        "tasks": ["lm-eval>=0.4.13"],
        "peers": ["liger-kernel>=0.8", "cut-cross-entropy>=25.1", "quack-kernels>=0.6"],
        "docs": DOCS,
        "dev": [
            *DOCS,
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.9",
            "mypy>=1.15",
            "transformers>=5.0",
            "accelerate>=1.10",
            "lightning>=2.5",
            "datasets>=4.0",
        ],
    },
    entry_points={"console_scripts": ["emergence-train = emergence_train.cli:run"]},
)
