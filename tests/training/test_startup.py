"""The start of a run: what it need not import."""

from support import run_python

SCRIPT = """
import sys
from pathlib import Path
from emergence_train import config
from emergence_train.training.run import train
train(config.load(sys.argv[1]), lambda line: None, stop_after=1)
print(*(name for name in ("torch._dynamo", "torch._inductor", "sympy", "scipy", "matplotlib", "wandb") if name in sys.modules))
"""


def test_the_first_step_needs_neither_compiler_nor_scipy(config_file, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = run_python(str(tmp_path / "script.py"), str(config_file), fresh=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == ""


def test_ranks_that_write_nothing_import_no_tables():
    """pandas and pyarrow make a sixth of a start; rank 0 alone, which writes tables, imports them."""
    script = "import sys, emergence_train.training.run; print(*(n for n in ('pandas', 'pyarrow') if n in sys.modules))"
    done = run_python("-c", script, fresh=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == ""
