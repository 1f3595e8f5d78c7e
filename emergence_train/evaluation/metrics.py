"""From the log-likelihoods of an item's choices to metrics, each with standard error, number of items and chance level.

  acc                   the likeliest choice is the right one
  acc_norm              the same with log-likelihoods divided by the choices' characters (lm-eval's acc_norm)
  correct_choice_prob   probability of the right choice, normalised over the choices (arXiv 2304.15004)
  brier                 sum over choices of (1[right] - p)^2, mean over items: uniform guessing among k gives 1 - 1/k, a
                        constant one-hot answer 2 (1 - 1/k). Some tools take the mean over choices: k times smaller
  answer_loglik         log-likelihood of the right choice, nats
  answer_bits_per_byte  the same with the sign turned, in bits for each byte of the choice
"""

import numpy as np

from emergence_train.evaluation.items import Task

HIGHER_IS_BETTER = {
    "acc": True, "acc_norm": True, "correct_choice_prob": True, "brier": False, "answer_loglik": True,
    "answer_bits_per_byte": False,
}  # fmt: skip


def choice_metrics(task: Task, log_likelihoods: list[np.ndarray]) -> list[dict]:
    """Rows of {"task", "metric", "value", "stderr", "items", "chance", "higher_is_better"}.

    `log_likelihoods` holds an array of each item's choices, nats. `chance` is NaN where guessing defines none.
    """
    each: dict[str, list[float]] = {name: [] for name in HIGHER_IS_BETTER}
    for item, values in zip(task.items, log_likelihoods):
        answer, choice = item.answer, item.choices[item.answer]
        length = np.array([len(text) for text in item.choices])
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
        {
            "task": task.name,
            "metric": name,
            "value": float(np.mean(values)),
            "stderr": float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.nan,
            "items": len(values),
            "chance": chance.get(name, np.nan),
            "higher_is_better": HIGHER_IS_BETTER[name],
        }
        for name, values in each.items()
    ]
