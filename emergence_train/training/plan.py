"""How many steps a run has, at which of them a checkpoint is made, and at which state is saved besides."""

from pathlib import Path

from emergence_train import checkpoints
from emergence_train.config import Config


class Plan:
    """All in steps, counted from 1. `checkpoint_steps` write tables, `state_steps` of them state too, and
    `ephemeral_steps` state alone."""

    def __init__(self, config: Config) -> None:
        self.step_tokens = config.training.batch * config.data.sequence
        self.total_steps = -(-config.training.tokens // self.step_tokens)
        self.total_tokens = self.total_steps * self.step_tokens
        self.every = max(1, round(config.checkpoints.every_tokens / self.step_tokens))
        self.save_state = config.checkpoints.save_state
        self.state_steps = {*range(self.every, self.total_steps + 1, self.every), self.total_steps}
        self.checkpoint_steps = set(self.state_steps)
        if config.checkpoints.log_spaced_start:
            powers = (2**k for k in range(self.every.bit_length()))
            self.checkpoint_steps |= {step for step in powers if step <= self.total_steps}
        self.ephemeral_steps: set[int] = set()
        if config.checkpoints.state_tokens:
            between = max(1, round(config.checkpoints.state_tokens / self.step_tokens))
            self.ephemeral_steps = set(range(between, self.total_steps + 1, between)) - self.state_steps

    def saves(self, step: int) -> bool:
        return self.save_state != "never" and step in self.state_steps | self.ephemeral_steps

    def finished(self, run: Path) -> bool:
        if not (run / "positions" / f"{checkpoints.step_name(self.total_steps)}.parquet").is_file():
            return False
        last = run / "checkpoints" / checkpoints.step_name(self.total_steps)
        return self.save_state == "never" or (last / checkpoints.MANIFEST).is_file()
