"""What a run measures at a checkpoint beside the loss at each position: its tasks, and losses that compare between runs."""

from functools import cached_property
from pathlib import Path

from emergence_train.config import Config
from emergence_train.data.dataset import Dataset
from emergence_train.distributed import Ranks
from emergence_train.evaluation.comparable import comparable, unigram_losses
from emergence_train.evaluation.suite import Suite, table, write


class Evaluator:
    """Made once a run; raises InputError where a task cannot be had."""

    def __init__(self, config: Config, dataset: Dataset) -> None:
        self.dataset = dataset
        self.told = False
        self.suite = Suite(config.tasks, dataset, config.data.sequence) if config.tasks else None

    @cached_property
    def unigram(self) -> dict[str, float]:
        """Cross-entropy of each validation split under the unigram model, nats per token."""
        return unigram_losses(self.dataset)

    def comparable(self, losses: dict[str, float]) -> dict:
        """bits_per_byte and log_pplu of each validation split's loss."""
        return comparable(self.dataset, losses, self.unigram)

    def score(self, model, ranks: Ranks) -> tuple[list[dict], float]:
        """The tasks' metrics and the seconds they took; all ranks call it."""
        return self.suite.score(model, ranks) if self.suite else ([], 0.0)

    def record(self, scores, run: Path, header: dict, step: int, tokens: int, losses: dict, log, mirror, say) -> None:
        """The checkpoint's evaluations table, a line in metrics.jsonl, W&B and the screen; rank 0 calls it."""
        rows, seconds = scores
        if not rows:
            return
        frame = table(
            rows, run=header["run"], params=header["params"], step=step, tokens=tokens, loss=losses["iid"],
            unigram_loss=self.unigram["iid"], bits_per_byte=self.comparable(losses)["bits_per_byte"]["iid"],
        )  # fmt: skip
        write(run, f"step-{step:010d}", frame, header["vocabulary"])
        values = {f"{row['task']}/{row['metric']}": row["value"] for row in rows}
        log.write("evaluation", step=step, tokens=tokens, seconds=round(seconds, 3), cut_requests=self.suite.cut, value=values)
        mirror.log({"tokens": tokens} | {f"tasks/{name}": value for name, value in values.items()})
        log.flush()
        for note in self.suite.notes if not self.told else ():
            say(f"tasks       {note}")
        self.told = True
        shown = "  ".join(f"{row['task']} {row['value']:.3f}" for row in rows if row["metric"] == "acc")
        say(f"tasks       step {step}  accuracy: {shown}  ({seconds:.1f} s)")
