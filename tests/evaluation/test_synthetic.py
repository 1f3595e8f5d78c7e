"""Generated tasks: no item twice, since repeats would count as independent ones."""

import numpy as np

from emergence_train import config as configs
from emergence_train.config import TaskConfig
from emergence_train.data import planted
from emergence_train.data.dataset import Dataset
from emergence_train.evaluation import synthetic
from emergence_train.evaluation.suite import Suite


def of_few_lines(draw):
    """30 lines of a letter and the one that follows it."""
    letter = draw.randrange(30)
    among = tuple(chr(ord("A") + (letter + k) % 30) for k in range(9))
    return planted.Exercise(among[:2], {1: among})


def test_generated_items_differ_and_fewer_are_noted(config_file, monkeypatch):
    """Of 30 lines some are held out, and sums of small numbers recur by chance: with this seed 4 of 1,000 draws."""
    monkeypatch.setitem(planted.SKILLS, "own", of_few_lines)
    monkeypatch.setitem(synthetic.GENERATORS, "own", synthetic.planted_skill("own"))
    dataset = Dataset(configs.load(config_file).data, 1, verify=False)
    wanted = [TaskConfig(task="own"), TaskConfig(task="modular-addition", items=1000, seed=2)]
    suite = Suite([*wanted, TaskConfig(task="recall", items=9)], dataset, 32)
    contexts = [[item.context for item in task.items] for task in suite.tasks]
    assert all(len(set(of_task)) == len(of_task) for of_task in contexts)
    assert 0 < len(contexts[0]) < 30 and [len(of_task) for of_task in contexts[1:]] == [1000, 9]
    assert suite.fewer == [f"task 'own': {len(contexts[0])} different items, not 200"]
    assert suite.fewer[0] in suite.notes


def test_continuations_of_little_text_differ():
    """4 windows of 40 tokens, of which 28 are asked about: 12 places a window, so 48 contexts at most."""
    windows = np.arange(160).reshape(4, 40)
    drawn = synthetic.continuation(50, 0, windows, lambda ids: " ".join(map(str, ids)))
    contexts = [item.context for item in drawn]
    assert 20 < len(contexts) <= 48 and len(set(contexts)) == len(contexts)
