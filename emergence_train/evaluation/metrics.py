"""Metrics of a task from log-likelihoods, each with standard error, number of items and chance level.

acc                   the likeliest choice is the right one
acc_norm              the same with log-likelihoods divided by the choices' characters, the space before a choice not counted
                      (lm-eval's acc_norm)
correct_choice_prob   probability of the right choice, normalised over the choices (arXiv 2304.15004)
brier                 sum over choices of (1[right] - p)^2, mean over items: uniform guessing among k gives 1 - 1/k, a
                      constant one-hot answer 2 (1 - 1/k). Some tools take the mean over choices: k times smaller
answer_loglik         log-likelihood of the right choice, nats
answer_bits_per_byte  the negative of it in bits per byte of the choice
exact_match           open answers: the generated text equals an answer up to case, width and spaces; one
                      continuation: greedy generation would give it, token for token

Of a task of several steps, each with its choices and the right answers of those before it in its context:

acc                   every step is right
step_1, step_2, ...   that step is right
correct_choice_prob   product over steps of the probability of the right choice: that of the whole among all wholes
answer_loglik         sum over steps
"""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from emergence_train.evaluation.items import AnswerTask, OpenItem, OpenTask, StepsTask, Task, as_number

HIGHER_IS_BETTER = {
    "acc": True,
    "acc_norm": True,
    "correct_choice_prob": True,
    "brier": False,
    "answer_loglik": True,
    "answer_bits_per_byte": False,
}


def choice_metrics(task: Task, log_likelihoods: list[np.ndarray]) -> list[dict]:
    """Rows of {"task", "metric", "value", "stderr", "items", "chance", "higher_is_better"}.

    `log_likelihoods` has an array (choices,) for each item, nats. `chance` is NaN for metrics without a chance level.
    """
    each: dict[str, list[float]] = {name: [] for name in HIGHER_IS_BETTER}
    for item, values in zip(task.items, log_likelihoods):
        answer, choice = item.answer, item.choices[item.answer]
        length = np.array([len(text.removeprefix(" ")) or 1 for text in item.choices])  # lm-eval's has no delimiter
        p = np.exp(values - values.max())
        p /= p.sum()
        right = np.arange(len(values)) == answer
        each["acc"].append(float(np.argmax(values) == answer))
        each["acc_norm"].append(float(np.argmax(values / length) == answer))
        each["correct_choice_prob"].append(float(p[answer]))
        each["brier"].append(float(np.sum((right - p) ** 2)))
        each["answer_loglik"].append(float(values[answer]))
        each["answer_bits_per_byte"].append(float(-values[answer] / np.log(2) / len(choice.encode())))
    chance = {"acc": task.chance, "acc_norm": task.chance, "correct_choice_prob": task.chance, "brier": 1 - task.chance}
    return [
        _row(task.name, name, values, chance.get(name, np.nan), HIGHER_IS_BETTER[name]) for name, values in each.items()
    ]


def steps_metrics(task: StepsTask, log_likelihoods: Sequence[Sequence[np.ndarray]]) -> list[dict]:
    """Rows, as of choice_metrics, of a task of several steps.

    `log_likelihoods` has, for each item and each of its steps, an array (choices,), nats.
    """
    right = np.zeros((len(task.items), task.steps))
    probability, logs, guess = right.copy(), right.copy(), right.copy()
    for number, (item, of_steps) in enumerate(zip(task.items, log_likelihoods)):
        for step, (question, values) in enumerate(zip(item, of_steps)):
            p = np.exp(values - values.max())
            right[number, step] = np.argmax(values) == question.answer
            probability[number, step] = p[question.answer] / p.sum()
            logs[number, step] = values[question.answer]
            guess[number, step] = 1 / len(values)
    chance = float(guess.prod(1).mean())
    rows = [
        _row(task.name, "acc", right.prod(1), chance, True),
        _row(task.name, "correct_choice_prob", probability.prod(1), chance, True),
        _row(task.name, "answer_loglik", logs.sum(1), np.nan, True),
    ]
    return rows + [
        _row(task.name, f"step_{k + 1}", right[:, k], float(guess[:, k].mean()), True) for k in range(task.steps)
    ]


def answer_metrics(task: AnswerTask, scores: np.ndarray) -> list[dict]:
    """Rows, as of choice_metrics, of a task with one right continuation an item.

    `scores` (items, 2): log-likelihood of the continuation in nats, and 1 where every token of it is the likeliest. Chance is 0.
    """
    size = np.array([len(item.choices[0].encode()) for item in task.items])
    each = {
        "exact_match": scores[:, 1],
        "answer_loglik": scores[:, 0],
        "answer_bits_per_byte": -scores[:, 0] / np.log(2) / size,
    }
    return [
        _row(task.name, name, values, 0.0 if name == "exact_match" else np.nan, HIGHER_IS_BETTER.get(name, True))
        for name, values in each.items()
    ]


def _row(task: str, metric: str, values: Sequence[float] | np.ndarray, chance: float, higher_is_better: bool) -> dict:
    """Mean over items; its standard error is the sample standard deviation / sqrt(items)."""
    stderr = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.nan
    return {
        "task": task,
        "metric": metric,
        "value": float(np.mean(values)),
        "stderr": stderr,
        "items": len(values),
        "chance": chance,
        "higher_is_better": higher_is_better,
    }


def exact_match(item: OpenItem, text: str) -> bool:
    """Whether a generated text equals one of the answers."""
    if item.number:
        numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
        return bool(numbers) and any(as_number(numbers[-1]) == as_number(answer) for answer in item.answers)
    return any(_folded(text) == _folded(answer) for answer in item.answers)


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def open_metrics(task: OpenTask, texts: list[str]) -> list[dict]:
    """The row of a task with open answers; chance is 0."""
    right = [float(exact_match(item, text)) for item, text in zip(task.items, texts)]
    return [_row(task.name, "exact_match", right, 0.0, True)]
