"""Rows of test_remedies: runs, their data and their checkpoints."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from emergence_train import cli
from remedy_rows import STEP, At, Row

FP8 = ("training.precision=bf16", "training.linears=fp8")
MORE = f"training.tokens={8 * STEP}"


def done(at: At) -> list[str]:
    """Train a run that has been trained: all is checked, and there is nothing to do."""
    if not (at.folder / "runs" / "run").exists():
        at.run()
    return at.train()


def in_run(says: str, change: Callable[[Path], object], command: Callable[[At], list[str]], *right: str, **more) -> Row:
    """A run directory that is changed, and refused by a command; `right`: what is added to the command, or the run restored."""

    def wrong(at: At) -> list[str]:
        change(at.run())
        return command(at)

    def then(at: At) -> list[str]:
        if not right:
            shutil.rmtree(at.folder / "runs" / "run")
            at.run()
        return [*command(at), *right]

    return Row(says, wrong, then, **more)


def _before_its_first_checkpoint(run: Path) -> None:
    """A run as it is while its first steps are trained."""
    shutil.rmtree(run / "positions")
    (run / "environment.json").unlink()  # has the end of its process
    rows = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(rows[:2]))


def of_data(says: str, change: Callable[[Path], object]) -> Row:
    """Prepared data that were altered: deleted and prepared again."""

    def wrong(at: At) -> list[str]:
        change(at.copied_data())
        return [*done(at), f"data.path={at.folder / 'copy'}"]

    def right(at: At) -> list[str]:
        shutil.rmtree(at.folder / "copy")
        assert cli.main(at.prepare(f"data.path={at.folder / 'copy'}")) == 0
        return [*done(at), f"data.path={at.folder / 'copy'}"]

    return Row(says, wrong, right)


def shard_of(data: Path) -> Path:
    return min((data / "train").rglob("*.bin"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def evaluate(at: At, *more: str) -> list[str]:
    return ["evaluate", str(at.folder / "runs" / "run"), *more]


def own(at: At, answer: int, *more: str, name: str = "own") -> list[str]:
    """Score a file of items whose right answer is `answer`."""
    return evaluate(at, "--tasks", f"{name}={items(at, answer)}", *more)


def edited(at: At) -> list[str]:
    """A file that was edited after another checkpoint was scored on it."""
    at.run()
    assert cli.main(own(at, 0, "--step", "2")) == 0
    return own(at, 1)


def unfinished(at: At, **task: object) -> list[str]:
    """Train a run whose last state was lost, so that it resumes, with a task."""
    tasks = "tasks=" + json.dumps([{"task": "copying"} | task])
    state = at.folder / "runs" / "scored" / "checkpoints" / "step-0000000004"
    if not state.exists() and not state.parent.exists():
        assert cli.main(at.train("name=scored", tasks)) == 0
        shutil.rmtree(state)
    return at.train("name=scored", tasks)


def reset(at: At) -> list[str]:
    """A task's seed that was changed before the run resumes."""
    unfinished(at, items=4)
    return unfinished(at, items=4, seed=1)


def of_file(at: At, answer: int, **more: object) -> list[str]:
    return unfinished(at, task="own", file=str(items(at, answer)), **more)


def edited_in_training(at: At) -> list[str]:
    """A file that was edited before the run resumes."""
    of_file(at, 0)
    return of_file(at, 1)


def replaced(at: At) -> list[str]:
    assert cli.main(["evaluate", str(at.folder / "runs" / "scored"), "--tasks", "own", "--replace"]) == 0
    return of_file(at, 1)


def branch(at: At, step: object, *over: str) -> list[str]:
    if not (at.folder / "runs" / "run").exists():
        at.run()
    return [*at.train(*over), "--from", f"{at.folder / 'runs' / 'run'}@{step}"]


def other_data(at: At, *over: str) -> list[str]:
    """Train the run on data of fewer documents at another place."""
    place = f"data.path={at.folder / 'fewer'}"
    assert cli.main(at.prepare("data.sources.0.limit_documents=15", *over, place)) == 0
    return [*done(at), place]


RUNS = [
    Row(
        "has no config.yaml; name the directory of a run that train or import wrote",
        lambda at: ["evaluate", str(at.run().parent)],
        evaluate,
    ),
    Row(
        "is a directory; give a configuration file, as the config.yaml in a run",
        lambda at: ["config", str(at.run())],
        lambda at: ["config", str(at.folder / "runs" / "run" / "config.yaml")],
    ),
    Row(
        "ask for fewer tokens or shorten the prompt",
        lambda at: ["generate", str(at.run()), "--prompt", "a", "--tokens", "10000"],
        lambda at: ["generate", str(at.folder / "runs" / "run"), "--prompt", "a", "--tokens", "4"],
    ),
    Row(
        "is a run with {} = {}, not {}; choose another name or restore the configuration",
        lambda at: [*done(at), "training.schedule.lr=0.02"],
        lambda at: [*done(at), "training.schedule.lr=0.02", "name=other"],
    ),
    Row(
        "lower training.schedule.lr or lengthen the warm-up in another run",
        lambda at: at.train(
            MORE, "training.schedule.lr=1e30", "training.schedule.warmup_tokens=1024", "faults.not_finite=stop"
        ),
        lambda at: at.train(MORE, "name=new", "training.schedule.lr=0.001"),
        code=1,
    ),
    Row(
        "another process is training this run; wait for it or choose another name",
        lambda at: (at.lock(at.run() / ".lock"), done(at))[-1],
        lambda at: (at.unlock(), done(at))[-1],
    ),
    Row(
        "holds files but no config.yaml; choose another name or empty it",
        lambda at: (at.write("runs/run/x", ""), at.train())[-1],
        lambda at: at.train("name=other"),
    ),
    in_run(
        "cannot be read ({}); choose another name",
        lambda run: (run / "config.yaml").write_text("a: ["),
        lambda at: at.train(),
        "name=other",
    ),
    Row(
        "smaller than the tokenizer's {} tokens ({}); raise it or remove it",
        lambda at: at.train("model.vocab_size=10", "name=new"),
        done,
    ),
    Row(
        "cannot be made or written ({}); choose another {}",
        lambda at: at.train(f"out={at.write('file', '')}"),
        done,
    ),
    Row(
        "begin another from a state before that (train CONFIG name=... --from {}@STEP)",
        lambda at: [*done(at), MORE],
        lambda at: branch(at, 2, MORE, "name=more"),
    ),
    Row(
        "write it as RUN or RUN@STEP, for example",
        lambda at: branch(at, "last", MORE, "name=more"),
        lambda at: branch(at, 4, MORE, "name=more"),
    ),
    Row("choose another name, or omit --from to resume it", lambda at: branch(at, 2), done),
    Row(
        "cannot begin from itself; choose another name",
        lambda at: [*at.train("name=new"), "--from", str(at.folder / "runs" / "new")],
        lambda at: branch(at, 4, MORE, "name=newer"),
    ),
    Row(
        "not {}; give training.optimizer.kind=",
        lambda at: branch(at, 2, MORE, "name=other", "training.optimizer.kind=muon"),
        lambda at: branch(at, 2, MORE, "name=other", "training.optimizer.kind=adamw"),
    ),
    Row(
        "choose another training.batch or step",
        lambda at: branch(at, 2, MORE, "name=more", "training.batch=6"),
        lambda at: branch(at, 2, MORE, "name=more", "training.batch=4"),
    ),
    Row(
        "training.tokens, which counts them in, is {}; raise it",
        lambda at: branch(at, 4, "name=more"),
        lambda at: branch(at, 4, "name=more", MORE),
    ),
    Row(
        "began from {}@{}, not {}; choose another name",
        lambda at: branch(at, 2, MORE, "name=more"),
        lambda at: branch(at, 2, MORE, "name=again"),
        before=lambda at: branch(at, 4, MORE, "name=more"),
    ),
    Row("set data.path to data of its tokenizer, or train under another name", other_data, done),
    Row(
        "set data.path to the data it was trained on, or train under another name",
        lambda at: other_data(
            at, "data.tokenizer.vocab_size=null", f"data.tokenizer.file={at.data / 'tokenizer.json'}"
        ),
        done,
    ),
    in_run("{}: has no checkpoint{}; it {}", lambda run: None, lambda at: evaluate(at, "--step", "3"), "--step", "4"),
    in_run(
        "{}; restore it{}",
        lambda run: flip(min((run / "checkpoints" / "step-0000000004").glob("*.safetensors"))),
        evaluate,
        "--step",
        "2",
    ),
    Row(
        "has no validation split {} (it has {})",
        lambda at: (at.run(), evaluate(at, "--split", "x"))[-1],
        lambda at: evaluate(at, "--split", "iid"),
    ),
    in_run("cannot be read ({}); restore it", lambda run: (run / "data.json").write_text("{"), evaluate),
    in_run(
        "is the tokenizer {}, and {} was trained with {}; restore it",
        lambda run: (run / "tokenizer.json").write_text(
            (run / "tokenizer.json").read_text().replace("endoftext", "end")
        ),
        lambda at: ["export", str(at.folder / "runs" / "run"), str(at.folder / "out")],
    ),
    Row(
        "is not an empty directory; choose another one",
        lambda at: ["export", str(at.run()), str(at.write("full/x", "").parent)],
        lambda at: ["export", str(at.folder / "runs" / "run"), str(at.folder / "empty")],
    ),
    Row(
        "is not a prepared data set; run `emergence-train prepare` first, or this where it lies",
        lambda at: [*done(at), f"data.path={at.folder / 'copy'}"],
        lambda at: (
            cli.main(at.prepare(f"data.path={at.folder / 'copy'}")),
            [*done(at), f"data.path={at.folder / 'copy'}"],
        )[1],
    ),
    of_data("altered: delete {} and prepare again", lambda data: (data / "dataset.json").write_text("{}")),
    of_data("cannot be read ({}); delete {} and prepare again", lambda data: (data / "dataset.json").write_text("{")),
    of_data("is missing; restore it, or delete {} and run prepare again", lambda data: shard_of(data).unlink()),
    of_data(
        "it is truncated or altered: delete {} and run prepare again", lambda data: shard_of(data).write_bytes(b"ab")
    ),
    of_data("it was altered: delete {} and run prepare again", lambda data: flip(shard_of(data))),
    of_data(
        "restore it, or delete {} and prepare again",
        lambda data: (data / "tokenizer.json").write_text(
            (data / "tokenizer.json").read_text().replace("endoftext", "end")
        ),
    ),
    Row(
        "give it as {} has it, or prepare it under another data.path",
        lambda at: at.train("data.validation.fraction=0.3", "name=new"),
        lambda at: at.train("name=new"),
    ),
    Row(
        "renamed; rename it back, or choose another name",
        lambda at: (at.run().rename(at.folder / "runs" / "renamed"), at.train("name=renamed"))[-1],
        lambda at: ((at.folder / "runs" / "renamed").rename(at.folder / "runs" / "run"), at.train())[-1],
    ),
    Row(
        "prepare it again under another data.path",
        lambda at: at.train("data.sequence=16", "name=new"),
        lambda at: at.train("data.sequence=16", "name=new", f"data.path={at.folder / 'short'}"),
        before=lambda at: at.prepare("data.sequence=16", f"data.path={at.folder / 'short'}"),
    ),
    Row(
        "prepare again under another data.path",
        lambda at: at.train("data.sources.0.domain=guides", "name=new"),
        lambda at: at.train("data.sources.0.domain=guides", "name=new", f"data.path={at.folder / 'named'}"),
        before=lambda at: at.prepare("data.sources.0.domain=guides", f"data.path={at.folder / 'named'}"),
    ),
    Row(
        "no such file; a task's items are a JSONL file of context, choices and answer",
        lambda at: at.train("name=new", "tasks=[{task: x, file: nowhere.jsonl}]"),
        lambda at: at.train("name=new", f"tasks=[{{task: x, file: {items(at)}}}]"),
    ),
    Row(
        "has no items; fill it, or remove the task",
        lambda at: at.train("name=new", f"tasks=[{{task: x, file: {at.write('none.jsonl', '')}}}]"),
        lambda at: at.train("name=new", f"tasks=[{{task: x, file: {items(at)}}}]"),
    ),
    Row(
        "({} of {} items cannot be scored); fix the file",
        lambda at: at.train("name=new", f"tasks=[{{task: x, file: {items(at, answer=7)}}}]"),
        lambda at: at.train("name=new", f"tasks=[{{task: x, file: {items(at)}}}]"),
    ),
    Row(
        "steps, the first {}; give all items as many, two at least",
        lambda at: at.train("name=new", f"tasks=[{{task: x, file: {stepwise(at, 2, 3)}}}]"),
        lambda at: at.train("name=new", f"tasks=[{{task: x, file: {stepwise(at, 2, 2)}}}]"),
    ),
    Row(
        "step {} of item {} of task {} {}; fix the file",
        lambda at: at.train("name=new", f"tasks=[{{task: x, file: {stepwise(at, 2, answer=7)}}}]"),
        lambda at: at.train("name=new", f"tasks=[{{task: x, file: {stepwise(at, 2)}}}]"),
    ),
    Row(
        "steps are of planted skills ({}); a file's rows have steps of their own; leave steps out",
        lambda at: at.train("name=new", "tasks=[{task: copying, items: 2, steps: 2}]"),
        lambda at: at.train("name=new", "tasks=[{task: copying, items: 2}]"),
    ),
    Row(
        "times are too rare; lower steps, or ask another skill",
        lambda at: at.train("name=new", "tasks=[{task: sums, items: 2, steps: 9}]"),
        lambda at: at.train("name=new", "tasks=[{task: sums, items: 2, steps: 2}]"),
    ),
    Row("{}give this command --replace, which removes its old scores", edited, lambda at: own(at, 1, "--replace")),
    Row("give it another name (--tasks {}), or ", edited, lambda at: own(at, 1, name="own-2")),
    Row("restore its items and settings, or give it another `name`", reset, lambda at: unfinished(at, items=4)),
    Row(
        "restore its items and settings, or give it another `name`",
        reset,
        lambda at: unfinished(at, items=4, seed=1, name="more"),
    ),
    Row("remove its old scores with `emergence-train evaluate {} --tasks {} --replace`", edited_in_training, replaced),
    Row("restore the items, give the task another `name`", edited_in_training, lambda at: of_file(at, 0)),
    Row("restore the items, give the task another `name`", edited_in_training, lambda at: of_file(at, 1, name="own-2")),
    Row(
        "no such file; name the result.json of `analyze emergence`",
        lambda at: at.train("name=new", "abilities=nowhere.json"),
        lambda at: at.train("name=new", f"abilities={at.folder / 'emergence' / 'result.json'}"),
        before=lambda at: at.emergence(at.evaluations(), "--out", at.folder / "emergence"),
    ),
    Row(
        "W&B is disabled (logging.wandb of its config.yaml, or WANDB_MODE); set it to offline or online",
        lambda at: (edited(at, "mode: disabled", "mode: auto"), ["sync", str(at.folder / "runs" / "run")])[-1],
        lambda at: (at.setenv("WANDB_MODE", "offline"), ["sync", str(at.folder / "runs" / "run")])[-1],
    ),
    in_run(
        "has no checkpoint with losses by position yet; wait for the first one",
        _before_its_first_checkpoint,
        lambda at: ["report", str(at.folder / "runs" / "run")],
    ),
    Row(
        "choose model.width and model.ffn that are, or training.linears bf16",
        lambda at: at.train("name=new", *FP8, "model.width=8"),
        lambda at: at.train("name=new", *FP8),
    ),
    Row(
        "is listed twice; give one of them a name of its own",
        lambda at: at.train("name=new", "tasks=[{task: copying, items: 4}, {task: copying, items: 5}]"),
        lambda at: at.train("name=new", "tasks=[{task: copying, items: 4}, {task: copying, items: 5, name: other}]"),
    ),
    Row(
        "the same run is named twice; name each run once",
        lambda at: ["report", str(at.run()), str(at.folder / "runs" / "run")],
        lambda at: ["report", str(at.folder / "runs" / "run")],
    ),
]


def edited(at: At, old: str, new: str) -> None:
    config = at.run() / "config.yaml"
    config.write_text(config.read_text().replace(old, new))


def stepwise(at: At, *steps: int, answer: int = 0) -> Path:
    """A file of items with so many steps each."""
    step = {"context": "the model reads", "choices": [" a line", " a text"], "answer": answer}
    return at.write("stepwise.jsonl", "".join(json.dumps({"steps": [step] * count}) + "\n" for count in steps))


def items(at: At, answer: int = 0) -> Path:
    row = {"context": "the model reads", "choices": [" a line", " a text"], "answer": answer}
    return at.write("items.jsonl", json.dumps(row) + "\n")
