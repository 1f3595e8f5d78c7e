"""Sweeps of small models that are refused, and what the message says to do: rows of test_remedies."""

import yaml

from remedy_rows import At, Row

TABLE = "question,answer\na b,1\na c,2\nb c,1\nc d,2\n"
KEYS = {
    "name": "small",
    "task": {"kind": "modular", "modulus": 5},
    "models": {"m": {"kind": "mlp", "width": 16, "hidden": 16}},
    "fractions": [0.6],
    "training": {"updates": 2, "evaluate_every": 2},
}


SAME = {name: KEYS["models"]["m"] for name in "mn"}


def grok(at: At, **keys: object) -> list[str]:
    """Of two updates."""
    path = at.write("sweep.yaml", yaml.safe_dump(KEYS | keys))
    return ["grok", str(path), "--jobs", "1", "--out", str(at.folder / "out")]


def sweep(says: str, wrong: dict, right: dict) -> Row:
    """Keys that are refused, and those that the message asks for."""
    return Row(says, lambda at: grok(at, **wrong), lambda at: grok(at, **right))


def table(says: str, wrong: str, right: str = TABLE, **task: object) -> Row:
    """A file of questions that is refused, and one as the message asks for."""

    def of(at: At, text: str, **keys: object) -> list[str]:
        at.write("q.csv", text)
        return grok(at, task={"kind": "table", "file": "q.csv"} | keys)

    return Row(says, lambda at: of(at, wrong), lambda at: of(at, right, **task))


def task(**keys: object) -> dict:
    return {"task": {"kind": "modular", "modulus": 5} | keys}


def transformer(**keys: object) -> dict:
    return {"models": {"m": {"kind": "transformer", "layers": 1, "width": 16, "heads": 2} | keys}}


def parity(**keys: object) -> dict:
    return {"task": {"kind": "parity", "bits": 4, "relevant": 2, "examples": 16} | keys}


SWEEPS = [
    sweep("see {} for examples", {"fractions": []}, {}),
    sweep("a value is listed twice, to six digits; list each once", {"seeds": [1, 1]}, {"seeds": [1]}),
    sweep("are the same model, so the same runs; keep one", {"models": SAME}, {}),
    sweep("are both {} of {} questions, so the same runs; keep one", {"fractions": [0.6, 0.61]}, {"fractions": [0.6]}),
    sweep("none to train on or to hold out; choose another", {"fractions": [0.01]}, {"fractions": [0.5]}),
    sweep("betas lie in [0, 1); set them so", {"training": KEYS["training"] | {"betas": [0.9, 1.0]}}, {}),
    sweep("needs a prime modulus, not {}; set another", task(modulus=9, operation="divide"), task(operation="divide")),
    sweep("choose add, subtract, multiply, divide or a polynomial", task(operation="plus"), task(operation="add")),
    sweep("have no {} relevant ones or {} questions; lower those", parity(relevant=5), parity(relevant=3)),
    sweep("is no multiple of heads {}; change one of them", transformer(heads=3), transformer(heads=4)),
    table(
        "has no {} (it has {}); name its columns in task",
        TABLE.replace("answer", "a"),
        TABLE.replace("answer", "a"),
        answer="a",
    ),
    table("has two answers; remove a row", TABLE + "a b,2\n"),
    table("questions; give at least 4", "question,answer\na,1\n"),
    table("has the same {}, so nothing can be learnt; give at least 2", "question,answer\na,1\nb,1\nc,1\nd,1\n"),
    table("twice; give each column a name of its own", "question,question,answer\na,b,1\n"),
    table(
        "cannot be read ({}); give CSV with a header or JSONL", "question,answer\n" + "a" * 140_000 + ",1\n"
    ),  # csv takes 131,072
]
SWEEPS_EXEMPT = {  # of a message: why it has no row
    "is a column of question too; leave it out there": "tried where its situation is made: grokking/test_grokking_tasks.py",
    "is a list or an object; give text or a number": "tried where its situation is made: grokking/test_grokking_tasks.py",
    "more memory than there is; lower stack": "a machine whose memory is full: grokking/test_runner.py",
    "give an object a line, and at most {} of them": "tried where its situation is made: grokking/test_grokking_tasks.py",
    "no GPU is visible here; set device to cpu": "a machine without a GPU, and some have one",
    "stopped, every stack is saved; run the same command": "tried where its situation is made: grokking/test_runner.py",
    "a training process was lost (exit code {}); run the same": "a process that is killed",
    "cannot be read back; run the same command again": "a disk that loses what was written",
    "curves: no column {}; give {}": "Python's own frames alone reach it: analysis/grokking/test_run_outcomes.py",
    "curves: no rows; give those of a run": "Python's own frames alone reach it: analysis/grokking/test_run_outcomes.py",
    "budget: {} is no number of updates": "Python alone reaches it: analysis/grokking/test_run_outcomes.py",
    "0 is no size of a model; give its parameters": "Python alone reaches it: analysis/grokking/test_run_outcomes.py",
    "begins at update {}; give a larger budget": "Python alone reaches it: analysis/grokking/test_run_outcomes.py",
    "is above 1; give shares, not percent": "Python's own frames alone reach it: analysis/grokking/test_run_outcomes.py",
    "has update {} twice; keep each once": "Python's own frames alone reach it: analysis/grokking/test_run_outcomes.py",
    "give each run a name of its own": "Python's own frames alone reach it: analysis/grokking/test_run_outcomes.py",
    "run, whose training data are unknown; probe a run": "an imported run: names another run",
    "are longer than the run's samples ({} tokens); lower one of": "a trained run: evaluation/test_memorisation_probe.py",
    "tokens, fewer than --prefix and --continuation together": "evaluation/test_memorisation_probe.py",
    "cannot be read ({}); give JSONL, an object with text a line": "evaluation/test_memorisation_probe.py",
    "has no text; give an object with text a line": "evaluation/test_memorisation_probe.py",
    "half of a surrogate pair, which is no text; leave it out": "evaluation/test_memorisation_probe.py",
    "has no rows; give the texts to ask about": "evaluation/test_memorisation_probe.py",
    "never, which are the controls; give at least {} of each": "evaluation/test_memorisation_probe.py",
    "items: no column {}; give {}": "Python's own frames alone reach it: analysis/memorisation/test_memorisation.py",
    "has item {} twice; keep each once": "Python's own frames alone reach it: analysis/memorisation/test_memorisation.py",
    "analyse probes of each length by themselves": "Python's own frames alone: analysis/memorisation/test_memorisation.py",
    "trained sequences and {} controls; probe at least 2": "analysis/memorisation/test_memorisation.py",
    "form {} is unknown; choose from {}": "Python alone: simulations",
}
