"""The steps of a run: their number, the checkpoints, and further steps at which state is saved."""

from collections.abc import Callable
from pathlib import Path

from emergence_train.config import Checkpoints, Training
from emergence_train.recorder.layout import step_name


class Plan:
    """Steps, counted from 1: `checkpoint_steps` write tables, `state_steps` of them state too, `ephemeral_steps`
    state alone."""

    def __init__(self, training: Training, checkpoints: Checkpoints, sequence: int) -> None:
        self.step_tokens = training.batch * sequence
        self.total_steps = -(-training.tokens // self.step_tokens)
        self.total_tokens = self.total_steps * self.step_tokens
        self.every = max(1, round(checkpoints.every_tokens / self.step_tokens))
        self.save_state = checkpoints.save_state
        self.state_steps = {*range(self.every, self.total_steps + 1, self.every), self.total_steps}
        self.checkpoint_steps = set(self.state_steps)
        if checkpoints.log_spaced_start:
            powers = (2**k for k in range(self.every.bit_length()))
            self.checkpoint_steps |= {step for step in powers if step <= self.total_steps}
        self.ephemeral_steps: set[int] = set()
        if checkpoints.state_tokens:
            between = max(1, round(checkpoints.state_tokens / self.step_tokens))
            self.ephemeral_steps = set(range(between, self.total_steps + 1, between)) - self.state_steps

    def saves(self, step: int) -> bool:
        return self.save_state != "never" and (step in self.state_steps or step in self.ephemeral_steps)

    def finished(self, run: Path, log: Callable[[str], None]) -> bool:
        """All tables are there and the last state is whole; or nothing is whole that could be resumed from."""
        from emergence_train.checkpoint.format import complete, problems  # with torch: a plan alone needs none

        if not (run / "positions" / f"{step_name(self.total_steps)}.parquet").is_file():
            return False
        if self.save_state == "never":
            return True
        states = complete(run / "checkpoints")
        if not states or states[-1].name != step_name(self.total_steps):
            return False
        wrong = problems(states[-1])
        if wrong and all(problems(path) for path in states[:-1]):
            log(f"{wrong[0]}; the run's logs are complete, and no other state is whole")  # never start over for that
            return True
        return not wrong
