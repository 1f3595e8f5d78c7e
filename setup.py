"""Packaging of emergence-train: the framework (emergence_train) and its kernels (emergence_kernels, under kernels/).

The kernels are usable without the framework. A CPU install needs no compiler and no CUDA.
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

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
    package_data={"emergence_train": ["data/sample/*", "report/*.html", "report/*.css", "report/*.js"]},
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
    ],
    extras_require={
        "flash": ["flash-attn>=2.8"],
        "hub": ["datasets>=4.0", "huggingface_hub>=1.0"],
        "bench": ["transformers>=5.0"],
        "tasks": ["lm-eval>=0.4.11"],
        "peers": ["liger-kernel>=0.8", "cut-cross-entropy>=25.1", "quack-kernels>=0.6"],
        "dev": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "hypothesis>=6.100",
            "ruff>=0.9",
            "transformers>=5.0",
            "datasets>=4.0",
        ],
    },
    entry_points={"console_scripts": ["emergence-train = emergence_train.cli:run"]},
)
