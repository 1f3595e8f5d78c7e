"""The README.md of an exported model: data, training, losses, the position curve and tasks, as the run's own files have them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from emergence_train.checkpoint.format import step_name
from emergence_train.config import Data, Training
from emergence_train.input_files import read_text
from emergence_train.models.config import ModelConfig
from emergence_train.models.imported import Imported
from emergence_train.recorder import tables

HEAD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [emergence-train]
---
"""


def model_card(
    run: Path,
    step: int,
    tokens: int,
    *,
    name: str,
    model: ModelConfig,
    data: Data,
    training: Training,
    imported: Imported | None,
    architecture: str,
    logits: str,
) -> str:
    """The card of the checkpoint of `step`, which had been trained on `tokens` tokens (0: not known).

    `logits`: how they compare with the run's.
    """
    facts = [
        ("architecture", architecture),
        (
            "parameters",
            f"{model.parameters():,}, {model.non_embedding_parameters():,} of them outside embedding and head",
        ),
        ("logits", logits),
        ("step", f"{step:,}"),
        ("tokens", f"{tokens:,}" if tokens else "not known"),
    ]
    if imported is None:
        facts += [
            ("sequence", f"{data.sequence:,} tokens"),
            ("batch", f"{training.batch:,} sequences"),
            ("optimizer", training.optimizer.kind),
            ("learning rate", f"{training.schedule.kind}, peak {training.schedule.lr:g}"),
            ("planned tokens", f"{training.tokens:,}"),
        ]
    else:
        facts.append(("imported from", imported.sources.get(str(step), "not known")))
    parts = [
        HEAD,
        f"# {name}",
        f"A causal language model, checkpoint {step:,} of the run `{name}` of emergence-train.",
        _table(("", ""), facts),
        "## Data",
        "Trained elsewhere: these are the texts that it was evaluated on." if imported else "The training mixture:",
        _mixture(data, run),
        "## Losses",
        _losses(run, step),
        "## Loss by position",
        _positions(run, step),
        "## Tasks",
        _tasks(run, step),
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _mixture(data: Data, run: Path) -> str:
    """Domains with their shares; tokens where the data set is there."""
    try:
        known = json.loads(read_text(Path(data.path) / "dataset.json"))["domains"]
    except (OSError, ValueError, KeyError):
        known = {}
    whole = sum(source.weight for source in data.sources)
    rows = []
    for source in data.sources:
        tokens = known.get(source.domain, {}).get("tokens")
        named = {"sample": source.sample, "planted skill": source.planted}
        origin = source.hub or next((f"{kind}: {name}" for kind, name in named.items() if name), "files")
        rows.append((source.domain, f"{source.weight / whole:.1%}", "" if tokens is None else f"{tokens:,}", origin))
    table = _table(("domain", "share", "tokens in the data set", "source"), rows)
    ood = ", ".join(source.domain for source in data.ood)
    return table + (f"\n\nOut of distribution, never trained on: {ood}." if ood else "")


def _losses(run: Path, step: int) -> str:
    path = run / "positions" / f"{step_name(step)}.parquet"
    if not path.is_file():
        return "Not measured at this step."
    means = tables.mean_loss(tables.read(tables.POSITIONS, path))
    rows = [
        (row["split"], f"{row['loss']:.4f}", f"{row['accuracy']:.1%}", f"{row['count']:,}")
        for row in means.to_dict("records")
    ]
    return "Means over held-out tokens (train: over those of training since the checkpoint before).\n\n" + _table(
        ("split", "nats per token", "top-1", "tokens"), rows
    )


def _positions(run: Path, step: int) -> str:
    """iid at positions 1, 2, 4, ... and the last."""
    path = run / "positions" / f"{step_name(step)}.parquet"
    if not path.is_file():
        return "Not measured at this step."
    table = tables.read(tables.POSITIONS, path)
    iid = table[table["split"] == "iid"].set_index("position")
    shown = [2**k for k in range(32) if 2**k in iid.index]
    shown += [int(iid.index.max())] if len(iid) and int(iid.index.max()) not in shown else []
    rows = [(position, f"{iid['loss_sum'][position] / iid['count'][position]:.4f}") for position in shown]
    return "Held-out text (iid); position 1 is the first predicted token.\n\n" + _table(("position", "nats"), rows)


def _tasks(run: Path, step: int) -> str:
    path = run / "evaluations" / f"{step_name(step)}.parquet"
    if not path.is_file():
        return "None scored at this step."
    rows = []
    for row in tables.read(tables.EVALUATIONS, path).to_dict("records"):
        stderr = "" if row["stderr"] != row["stderr"] else f" ± {row['stderr']:.4f}"
        items, chance = ("" if x != x else f"{x:g}" for x in (row["items"], row["chance"]))
        rows.append((row["task"], row["metric"], f"{row['value']:.4f}{stderr}", items, chance))
    return _table(("task", "metric", "value", "items", "chance"), rows)
