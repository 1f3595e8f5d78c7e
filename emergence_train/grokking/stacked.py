"""Train a stack of models of one shape, each on its own questions, as one: the products are batched over models.

A run's numbers do not depend on who else is in its stack: no operation mixes models, and on a CPU the bits of a batched product
do not depend on how many there are, from the sizes of shapes.py on (tests/grokking/test_stacked.py). So runs that have settled
may leave. On a GPU that is not so: a library may choose another kernel for another number of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from emergence_train.grokking import shapes as parameters
from emergence_train.grokking.sweep import Run, Training
from emergence_train.grokking.tasks import QuestionTable

MEASURES = ("train_loss", "train_accuracy", "heldout_loss", "heldout_accuracy", "norm")
PERFECT = 1.0


@dataclass
class Split:
    """Prepared questions (K, N, ...) and their answers (K, N)."""

    rows: torch.Tensor
    answers: torch.Tensor

    def keep(self, chosen: torch.Tensor) -> "Split":
        return Split(self.rows[chosen], self.answers[chosen])


@dataclass
class Stack:
    """Models in training. `curves`: by run's name, a list of (update, *MEASURES)."""

    runs: list[Run]
    table: QuestionTable
    training: Training
    device: torch.device = torch.device("cpu")
    update: int = field(default=0, init=False)
    curves: dict[str, list[tuple[float, ...]]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        first = self.runs[0]
        self.model = first.section
        self.shapes = self.model.shapes(self.table.questions.shape[1], self.table.symbols, self.table.classes)
        values = [parameters.first_values(self.shapes, _seed(run)) for run in self.runs]
        self.weights = torch.stack(values).to(self.device)
        self.moments = torch.zeros(2, *self.weights.shape, device=self.device)
        orders = [np.random.default_rng([*run.entropy, 1]).permutation(len(self.table.answers)) for run in self.runs]
        self.train = self._split([order[: first.trained_on] for order in orders])
        self.heldout = self._split([order[first.trained_on :] for order in orders])
        self.curves = {run.name: [] for run in self.runs}
        self._bind()

    def _split(self, chosen: Sequence[np.ndarray]) -> Split:
        places = torch.from_numpy(np.stack([np.sort(part) for part in chosen]))
        questions = torch.from_numpy(self.table.questions)[places].to(self.device)
        answers = torch.from_numpy(self.table.answers)[places].to(self.device)
        return Split(self.model.prepared(questions, self.table.symbols), answers)

    def _bind(self) -> None:
        """Parameters as leaves, and their gradients: views of two buffers."""
        self.leaves = {
            name: part.detach().requires_grad_() for name, part in parameters.views(self.weights, self.shapes)
        }
        self.gradient = torch.zeros_like(self.weights)
        self.slopes = [part for _, part in parameters.views(self.gradient, self.shapes)]
        decays = [1 - self.training.lr * run.weight_decay for run in self.runs]
        self.decay = torch.tensor(decays, dtype=torch.float64, device=self.device).to(torch.float32)[:, None]

    def step(self) -> None:
        """One update of every model."""
        self.update += 1
        rows = self.train if self.training.batch is None else self._batch()
        losses = _losses(self.model.logits(self.leaves, rows.rows), rows.answers)
        total = (losses / rows.answers.shape[1]).sum()  # no model's gradient depends on another's loss
        for slope, gradient in zip(self.slopes, torch.autograd.grad(total, list(self.leaves.values()))):
            slope.copy_(gradient)
        self._adamw()

    def _adamw(self) -> None:
        """AdamW (arXiv 1711.05101): the decay is lr x weight decay of the value, apart from the moments."""
        first, second = self.training.betas
        warm = min(self.update / self.training.warmup, 1.0) if self.training.warmup else 1.0
        mean, square = self.moments
        mean.lerp_(self.gradient, 1 - first)
        square.mul_(second).addcmul_(self.gradient, self.gradient, value=1 - second)
        scale = self.training.lr * warm / (1 - first**self.update)
        root = square.sqrt().div_((1 - second**self.update) ** 0.5).add_(self.training.eps)
        self.weights.mul_(self.decay if warm == 1 else 1 - (1 - self.decay) * warm).addcdiv_(mean, root, value=-scale)

    def _batch(self) -> Split:
        """The update's questions: each run draws an order of its own for every epoch."""
        size = min(self.training.batch or 0, self.train.answers.shape[1])
        an_epoch = self.train.answers.shape[1] // size
        epoch, place = divmod(self.update - 1, an_epoch)
        orders = [np.random.default_rng([*run.entropy, 2, epoch]).permutation(run.trained_on) for run in self.runs]
        chosen = torch.from_numpy(np.stack(orders)[:, place * size : (place + 1) * size]).to(self.device)
        each = torch.arange(len(self.runs), device=self.device)[:, None]
        return Split(self.train.rows[each, chosen], self.train.answers[each, chosen])

    @torch.no_grad()
    def measure(self) -> None:
        """Add loss (nats a question), accuracy and the norm of all parameters to every run's curve."""
        columns = []
        for split in (self.train, self.heldout):
            logits = self.model.logits(self.leaves, split.rows)
            right = logits.argmax(-1) == split.answers
            # Row by row: the order of a sum over a stack may depend on its size.
            columns.append([float(losses.mean()) for losses in _losses(logits, split.answers)])
            columns.append([float(row.double().mean()) for row in right])
        columns.append([float(row.norm()) for row in self.weights])
        for run, *values in zip(self.runs, *columns):
            self.curves[run.name].append((self.update, *values))

    def settled(self) -> list[Run]:
        """Runs with both accuracies at 1 at each measurement of the last `settle` updates, and those whose loss is not finite."""
        return [run for run in self.runs if _settled(self.curves[run.name], self.training.settle)]

    def resume(
        self, names: list[str], update: int, weights: torch.Tensor, moments: torch.Tensor, curves: torch.Tensor
    ) -> None:
        """Take over a saved state of the runs `names`, among which are those of this stack."""
        chosen = torch.tensor([names.index(run.name) for run in self.runs])
        self.update = update
        self.weights = weights[chosen].to(self.device)
        self.moments = moments[:, chosen].to(self.device)
        self.curves = {run.name: [tuple(row) for row in curves[k].tolist()] for run, k in zip(self.runs, chosen)}
        self._bind()

    def leave(self, runs: list[Run]) -> None:
        """Continue without these."""
        stay = [place for place, run in enumerate(self.runs) if run not in runs]
        chosen = torch.tensor(stay, device=self.device)
        self.runs = [self.runs[place] for place in stay]
        self.weights, self.moments = self.weights[chosen], self.moments[:, chosen]
        self.train, self.heldout = self.train.keep(chosen), self.heldout.keep(chosen)
        self._bind()


def _seed(run: Run) -> int:
    return int(np.random.default_rng([*run.entropy, 0]).integers(2**62))


def _losses(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """(K, N) cross-entropy in nats."""
    return -logits.log_softmax(-1).gather(-1, answers[..., None])[..., 0]


def _settled(curve: list[tuple[float, ...]], settle: int | None) -> bool:
    if curve and not np.isfinite(curve[-1][1:]).all():
        return True
    if settle is None or not curve:
        return False
    last = [row for row in curve if row[0] >= curve[-1][0] - settle]
    return curve[-1][0] >= settle and all(min(row[2], row[4]) >= PERFECT for row in last)
