"""Wrong situations, what is said of them, and what it says to do: the rows of test_remedies.

A situation and a remedy are functions of At; they write files and return the command's arguments. What a remedy returns must
pass. `says` is the message as the source has it, {} for what is filled in.
"""

import fcntl
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

WORDS = ["the", "model", "reads", "a", "line", "of", "text", "and", "learns", "what", "comes", "next", "in", "it"]
STEP = 8 * 32  # tokens of a step of the small configuration


@dataclass
class At:
    """A folder, the small configuration over prepared data there, and a run of four steps, made when it is asked for."""

    folder: Path
    config: Path
    data: Path
    trained: Callable[[], Path]
    setenv: Callable[[str, str], None]
    delenv: Callable[[str], None]
    held: list = field(default_factory=list)

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def documents(self, name: str = "text.jsonl", count: int = 60, words: int = 40, key: str = "text") -> Path:
        texts = [" ".join(WORDS[(k * 7 + i * (k % 5 + 1)) % len(WORDS)] for i in range(words)) for k in range(count)]
        return self.write(name, "".join(json.dumps({key: text}) + "\n" for text in texts))

    def prepare(self, *over: str) -> list[str]:
        """prepare, of the data that is prepared already: what is wrong in the configuration is refused before."""
        return ["prepare", str(self.config), *over]

    def plan(self, *given: str) -> list[str]:
        return ["plan", str(self.config), "--gpu", "h100-80gb", *given]

    def changed(self, **keys: object) -> list[str]:
        """prepare, of the configuration with other sections."""
        return [
            "prepare",
            str(self.write("changed.yaml", yaml.safe_dump(yaml.safe_load(self.config.read_text()) | keys))),
        ]

    def own(self, *over: str, files: str = "text.jsonl", path: str = "own") -> list[str]:
        """prepare, of one source of this folder's files."""
        source = {"domain": "mine", "files": [str(self.folder / files)]}
        tree = yaml.safe_load(self.config.read_text())
        tree["data"] |= {"path": str(self.folder / path), "sources": [source], "ood": [], "sequence": 16}
        tree["data"]["validation"] = {"sequences": 4, "domain_sequences": 2, "fraction": 0.2}
        return ["prepare", str(self.write("own.yaml", yaml.safe_dump(tree))), *over]

    def train(self, *over: str) -> list[str]:
        return ["train", str(self.config), f"training.tokens={4 * STEP}", f"checkpoints.every_tokens={2 * STEP}", *over]

    def run(self) -> Path:
        """A copy of a run of four steps with states of steps 2 and 4, where the configuration's run would be."""
        target = self.folder / "runs" / "run"
        shutil.copytree(self.trained(), target)
        return target

    def copied_data(self) -> Path:
        shutil.copytree(self.data, self.folder / "copy")
        return self.folder / "copy"

    def curve(self, name: str = "c.csv", rows: int = 30, tokens: int = 1000, **more) -> Path:
        steps = [100 * k for k in range(1, rows + 1)]
        frame = pd.DataFrame(
            {"run": "r", "params": 10, "step": steps, "tokens": [tokens * s for s in steps], "lr": 1e-3}
        )
        frame["loss"] = [2 + 3 * s**-0.3 for s in steps]
        frame.assign(**more).to_csv(self.folder / name, index=False)
        return self.folder / name

    def evaluations(self, name: str = "e.csv", **more) -> Path:
        steps = [100 * k for k in range(1, 13)]
        frame = pd.DataFrame({"run": "r", "params": 10, "step": steps, "tokens": [1000 * s for s in steps]})
        frame["loss"] = [2 + 3 * s**-0.3 for s in steps]
        frame = frame.assign(task="t", metric="acc", value=[0.25 + s / 4000 for s in steps], items=100, chance=0.25)
        frame.assign(**more).to_csv(self.folder / name, index=False)
        return self.folder / name

    def temporal(self, *arguments: object) -> list[str]:
        return ["analyze", "temporal", *map(str, arguments)]

    def emergence(self, *arguments: object) -> list[str]:
        return ["analyze", "emergence", *map(str, arguments)]

    def lock(self, path: Path) -> None:
        """Hold a lock as another process would."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.held.append(open(path, "w"))  # noqa: SIM115 - until the remedy
        fcntl.flock(self.held[-1], fcntl.LOCK_EX)

    def unlock(self) -> None:
        while self.held:
            self.held.pop().close()


@dataclass(frozen=True)
class Row:
    says: str
    wrong: Callable[[At], list[str]]
    right: Callable[[At], list[str]]
    code: int = 2
    before: Callable[[At], list[str]] | None = None  # a command that passes first


def planted(skill: str, domain: str = "a") -> str:
    """A source without a space, as `config` takes it."""
    return f'{{"domain":"{domain}","planted":"{skill}","limit_documents":40}}'


TWICE = (f"data.sources.0={planted('recall')}", f"data.sources.1={planted('recall', 'b')}")


def config(says: str, wrong: str, right: str = "") -> Row:
    """Overrides that are refused, and those that the message asks for (default: without them)."""
    return Row(says, lambda at: at.prepare(*wrong.split()), lambda at: at.prepare(*right.split()))


CONFIG = [
    Row(
        "must be the first and the last step; give the smaller one first",
        lambda at: at.prepare("training.profile={steps: [9, 3]}"),
        lambda at: at.prepare("training.profile={steps: [3, 9]}"),
    ),
    config("has no variable {}; set it or leave", "name=a-${NOWHERE}", "name=a"),
    config("has no value {}; give a key such as", "name=a-${training.lr}", "name=a-${training.schedule.lr}"),
    config("domain {} must have exactly one of files, hub, sample and planted (has: {})", "data.sources.0.hub=x"),
    Row(
        "no source with a weight above 0 is in the iid set; leave in_iid out of one of them",
        lambda at: at.prepare("data.sources.0.in_iid=false", "data.sources.1.in_iid=false"),
        lambda at: at.prepare("data.sources.0.in_iid=false", f"data.path={at.folder / 'iid'}"),
    ),
    config("domain name {} is taken by a split of the tables; choose another", "data.sources.0.domain=iid"),
    config("give exactly one of vocab_size, file and hub (has: {})", "data.tokenizer.hub=x"),
    config("is no name: give letters of English", "data.sources.0.domain=français"),
    config("domain {} is listed twice; list its files in one source", "data.sources.1.domain=manuals"),
    config("every source has weight 0; give at least one", "data.sources.0.weight=0 data.sources.1.weight=0"),
    Row(
        "items of a file hold their own examples; leave shots out",
        lambda at: at.prepare("tasks=[{task: x, file: f, shots: 2}]"),
        lambda at: at.prepare("tasks=[{task: x, file: f}]"),
    ),
    config(
        "is longer than model.max_sequence {}; shorten the one or raise",
        "model.max_sequence=16",
        "model.max_sequence=64",
    ),
    config(
        "use zero_stage 1 (also on one GPU) or precision fp32",
        "training.precision=bf16 training.zero_stage=0",
        "training.precision=bf16 training.zero_stage=1",
    ),
    config("give a whole number from 1 on, or auto", "training.micro_batch=0", "training.micro_batch=auto"),
    config(
        "activations are bf16 there; set precision bf16, or linears bf16",
        "training.linears=fp8",
        "training.linears=fp8 training.precision=bf16",
    ),
    config(
        "data.sequence {} is not a multiple of it; choose a divisor",
        "training.sequence_parallel=3",
        "training.sequence_parallel=2",
    ),
    config(
        "training.zero.{} is of stage 3, not {}; set training.zero_stage=3",
        "training.zero.hpz_partition_size=2",
        "training.zero.hpz_partition_size=2 training.zero_stage=3",
    ),
    config(
        "a rank's weights cannot be on NVMe, the optimizer's state can; give cpu, or none and more GPUs",
        "training.zero_stage=3 training.zero.offload_optimizer=cpu training.zero.offload_param=nvme",
        "training.zero_stage=3 training.zero.offload_optimizer=cpu training.zero.offload_param=cpu",
    ),
    config(
        "nvme is of stage 3, not {}; set training.zero_stage=3, or give cpu",
        "training.zero_stage=2 training.zero.offload_optimizer=nvme training.zero.nvme_path=disk",
        "training.zero_stage=2 training.zero.offload_optimizer=cpu",
    ),
    config(
        "training.zero.nvme_path and offload_optimizer nvme need one another; set both, or neither",
        "training.zero_stage=3 training.zero.offload_optimizer=nvme",
        "training.zero_stage=3",
    ),
    config(
        "is of stages 2 and 3, not {}; set training.zero_stage=2",
        "training.zero.offload_optimizer=cpu",
        "training.zero.offload_optimizer=cpu training.zero_stage=2",
    ),
    config(
        "which is larger; set offload_optimizer too",
        "training.zero_stage=3 training.zero.offload_param=cpu",
        "training.zero_stage=3 training.zero.offload_param=cpu training.zero.offload_optimizer=cpu",
    ),
    config(
        "is of optimizer.kind adamw, not {}; leave it out",
        "training.zero_stage=2 training.optimizer.kind=muon training.zero.offload_optimizer=cpu",
        "training.zero_stage=2 training.optimizer.kind=muon",
    ),
    config(
        "compiled blocks do not exchange heads; set training.compile false",
        "training.sequence_parallel=2 training.compile=true",
        "training.sequence_parallel=2 training.compile=false",
    ),
    config("is not a multiple of micro_batch {}; change one", "training.micro_batch=3", "training.micro_batch=4"),
    config(
        "needs decay_tokens, the length of the final decay; set it",
        "training.schedule.kind=wsd",
        "training.schedule.kind=wsd training.schedule.decay_tokens=512",
    ),
    config(
        "is for kind wsd, not {}; leave it out or set kind to wsd",
        "training.schedule.decay_tokens=512",
        "training.schedule.kind=wsd training.schedule.decay_tokens=512",
    ),
    config("more than training.tokens; lower them", "training.schedule.warmup_tokens=1e9"),
    config(
        "entries; give data.sequence = {}",
        "training.position_weights.vector=[1]",
        f"training.position_weights.vector=[{','.join(['1'] * 32)}]",
    ),
    config(
        "all weights are zeros; give some position a weight",
        f"training.position_weights.vector=[{','.join(['0'] * 32)}]",
        f"training.position_weights.vector=[1,{','.join(['0'] * 31)}]",
    ),
    config(
        "YAML takes it for something else: quote it, as",
        "name=2026",
        "name='2026'",
    ),
    config("write it as section.key=value, for example", "training.zero_stage", "training.zero_stage=2"),
    config("is a list of {}; use an index from 0 to {}", "data.sources.7.weight=1", "data.sources.1.weight=1"),
    config("is a value, not a section; set that", "name.first=a", "name=a"),
    config("choose heads that divide it", "model.heads=3"),
    config("choose kv_heads that divide it", "model.heads=4 model.kv_heads=3", "model.heads=4 model.kv_heads=2"),
    config("rotary embedding needs pairs; choose other heads", "model.heads=16 model.kv_heads=1", "model.heads=8"),
    config(
        "choose one that rotates an even number of at least 2", "model.rotary_fraction=0.1", "model.rotary_fraction=0.5"
    ),
    Row("no such configuration file; see configs/", lambda at: ["prepare", "nowhere.yaml"], lambda at: at.prepare()),
    Row(
        "a configuration is a mapping of keys to values; see configs/",
        lambda at: ["prepare", str(at.write("list.yaml", "- a\n"))],
        lambda at: at.prepare(),
    ),
    Row(
        "is empty in the file; give it there",
        lambda at: [*at.changed(logging=None), "logging.wandb=disabled"],
        lambda at: [*at.changed(logging={"console_seconds": 1}), "logging.wandb=disabled"],
    ),
]


def plan(says: str, wrong: str, right: str) -> Row:
    """Arguments of `plan` that are refused, and those that the message asks for."""
    return Row(says, *(lambda at, given=given: at.plan(*given.split()) for given in (wrong, right)))


PLANS = [
    plan(
        "does not divide {} GPUs; give a number that does",
        "--gpus 2 training.zero_stage=3 training.zero.hpz_partition_size=4",
        "--gpus 2 training.zero_stage=3 training.zero.hpz_partition_size=2",
    ),
    plan("is not a multiple of {}; give --gpus {}", "--gpus 3", "--gpus 4"),
    plan(
        "is not a multiple of {}; give --gpus {}",
        "--gpus 6 training.sequence_parallel=4 model.heads=4",
        "--gpus 8 training.sequence_parallel=4 model.heads=4",
    ),
    plan(
        "no multiple of micro_batch {}; give training.micro_batch={}, or auto",
        "--gpus 2 training.batch=4 training.micro_batch=4",
        "--gpus 2 training.batch=4 training.micro_batch=2",
    ),
    plan(
        "is not known before `prepare`; add model.vocab_size=N",
        '--gpus 1 data.path=elsewhere data.tokenizer={"file":"x.json"}',
        '--gpus 1 data.path=elsewhere data.tokenizer={"file":"x.json"} model.vocab_size=65024',
    ),
]


def other_place(at: At) -> list[str]:
    return at.own(path="other")


def afresh(at: At) -> list[str]:
    """Delete the data set and prepare again."""
    shutil.rmtree(at.folder / "own", ignore_errors=True)
    return at.own()


def source(says: str, name: str, bad: str | bytes, good: Callable[[At], list[str]] | None = None, **more) -> Row:
    """A source's file that is refused; by default the remedy is a file that is right."""

    def wrong(at: At) -> list[str]:
        at.write(name, bad)
        return at.own(files=name)

    def right(at: At) -> list[str]:
        at.documents(name)
        return at.own(files=name)

    return Row(says, wrong, good or right, **more)


def prepared(says: str, change: Callable[[At], object], right: Callable[[At], list[str]] = other_place) -> Row:
    """Prepared data whose sources or files are changed afterwards."""

    def before(at: At) -> list[str]:
        at.documents()
        return at.own(files="text*.jsonl")

    def wrong(at: At) -> list[str]:
        change(at)
        return at.own(files="text*.jsonl")

    def then(at: At) -> list[str]:
        right(at)
        return at.own(files="text*.jsonl", path="other" if right is other_place else "own")

    return Row(says, wrong, then, before=before)


def text_field(at: At, name: str, field_name: str) -> list[str]:
    return at.own(f"data.sources.0.text_field={field_name}", files=name)


def parquet(at: At, name: str = "t.parquet") -> list[str]:
    texts = [json.loads(line)["text"] for line in at.documents().read_text().splitlines()]
    pq.write_table(pa.table({"text": list(range(len(texts))), "body": texts}), at.folder / name)
    return at.own(files=name)


def tokenizer_named(at: At, end: str) -> Path:
    """The data's tokenizer with another end of text."""
    held = (at.data / "tokenizer.json").read_text()
    return at.write("tok/tokenizer.json", held.replace("<|endoftext|>", end))


def with_tokenizer(at: At, file: Path | str, *over: str) -> list[str]:
    at.documents()
    return at.own("data.tokenizer.vocab_size=null", f"data.tokenizer.file={file}", *over)


def two_domains(at: At, *over: str) -> list[str]:
    at.documents("a.jsonl")
    at.documents("b.jsonl", words=50)
    both = [{"domain": name, "files": [str(at.folder / f"{name}.jsonl")]} for name in "ab"]
    return at.own(f"data.sources={json.dumps(both)}", *over)


DATA = [
    Row(
        "is a file; data.path must be a directory, or not exist",
        lambda at: (at.documents(), at.write("own", "x"), at.own())[-1],
        other_place,
    ),
    Row(
        "was prepared with another data.{}; choose another data.path or delete it",
        lambda at: at.own("data.validation.fraction=0.3"),
        lambda at: [*other_place(at), "data.validation.fraction=0.3"],
        before=lambda at: (at.documents(), at.own())[-1],
    ),
    prepared("when {} was prepared from it; choose another data.path or delete it", lambda at: at.documents(count=70)),
    prepared(
        "did not exist when {} was prepared; choose another data.path or delete it",
        lambda at: at.documents("text2.jsonl"),
    ),
    prepared("cannot be read; delete {} and prepare again", lambda at: at.write("own/recipe.json", "{"), afresh),
    Row(
        "is not the tokenizer of {}; choose another data.path or delete it",
        lambda at: with_tokenizer(
            at, at.write("tok/tokenizer.json", (at.folder / "tok/tokenizer.json").read_text() + "\n")
        ),
        lambda at: [*with_tokenizer(at, at.folder / "tok/tokenizer.json"), f"data.path={at.folder / 'other'}"],
        before=lambda at: with_tokenizer(at, tokenizer_named(at, "<|endoftext|>")),
    ),
    Row(
        "another process is preparing it; wait for it",
        lambda at: (at.documents(), at.lock(at.folder / "own" / ".lock"), at.own())[-1],
        lambda at: (at.unlock(), at.own())[-1],
    ),
    Row(
        "cannot be made or written ({}); choose another {}",
        lambda at: (at.documents(), at.write("file", ""), at.own(f"data.path={at.folder / 'file' / 'below'}"))[-1],
        other_place,
    ),
    source("fewer than one sequence ({}); add text or shorten data.sequence", "s.jsonl", '{"text": "the the"}\n' * 2),
    source(
        "of held-out text, for one validation sequence; add text or shorten data.sequence",
        "s.jsonl",
        json.dumps({"text": " ".join(WORDS * 60)}) + "\n" + '{"text": "a"}\n' * 5,
    ),
    Row(
        "too few to hold a sequence of each domain by its weight; raise it to {}",
        lambda at: two_domains(at, "data.validation.sequences=1"),
        lambda at: two_domains(at, "data.validation.sequences=2"),
    ),
    Row(
        "of the mixture, too small to be sampled (the least is 1/{}); raise it or set it to 0",
        lambda at: two_domains(at, "data.sources.0.weight=1e-9"),
        lambda at: two_domains(at, "data.sources.0.weight=0"),
    ),
    Row(
        "unknown kind of file; use {}",
        lambda at: (at.write("text.pdf", "x"), at.own(files="text.pdf"))[-1],
        lambda at: (at.documents(), at.own())[-1],
    ),
    source("by its first bytes; convert it first", "s.jsonl", "ab".encode("utf-16")),
    source("is a JSON array; write one object a line (.jsonl)", "s.jsonl", '[{"text": "a"}]\n'),
    source("line {} is not CSV ({}); fix its quotes", "s.csv", 'text\n"a\nb', lambda at: csv_of(at, "s.csv", "text")),
    Row(
        "{}: no column {} (it has {}); set text_field",
        lambda at: csv_of(at, "s.csv", "body"),
        lambda at: text_field(at, "s.csv", "body"),
    ),
    Row(
        "column {} holds {}, not text; set text_field",
        parquet,
        lambda at: text_field(at, "t.parquet", "body"),
    ),
    Row(
        "{} {}, as all of the first {}; {}",
        lambda at: (at.documents(key="body"), at.own())[-1],
        lambda at: text_field(at, "text.jsonl", "body"),
    ),
    Row(
        "{} {}; {} of {} rows of {} are no text: {}",
        lambda at: (at.write("s.jsonl", at.documents().read_text() + '{"a": 1}\n' * 9), at.own(files="s.jsonl"))[-1],
        lambda at: at.own("data.bad_rows=0.2", files="s.jsonl"),
    ),
    Row(
        "lies in data.path; choose another data.path, or write a pattern without it",
        lambda at: (at.documents("own/text.jsonl"), at.own(files="own/text.jsonl"))[-1],
        lambda at: at.own(files="own/text.jsonl", path="other"),
    ),
    Row(
        "restore or remove it, or write a pattern without it",
        lambda at: (at.documents(), (at.folder / "gone.jsonl").symlink_to("nowhere"), at.own(files="*.jsonl"))[-1],
        lambda at: ((at.folder / "gone.jsonl").unlink(), at.own(files="*.jsonl"))[-1],
    ),
    Row(
        "are directories; write a glob such as dir/*.txt",
        lambda at: (at.documents("d/text.jsonl"), at.own(files="d"))[-1],
        lambda at: at.own(files="d/*.jsonl"),
    ),
    Row(
        "is in the domains {} and {}; give it to one of them",
        lambda at: [*two_domains(at), f"data.sources.1.files=[{at.folder / '*.jsonl'}]"],
        two_domains,
    ),
    config("the sample has no domain {}; it has {}", "data.sources.0.sample=manual data.path=nowhere"),
    Row(
        "steps are for planted skills; rows of a file have steps of their own; leave steps out",
        lambda at: at.prepare("tasks=[{task: x, file: f, steps: 2}]"),
        lambda at: at.prepare("tasks=[{task: x, file: f}]"),
    ),
    config("no skill is called {}; there are {}", f"data.sources.0={planted('reading')} data.path=nowhere"),
    Row(
        "the skill {} is planted in the domains {} and {}; give it to one of them",
        lambda at: at.prepare(*TWICE, "data.path=nowhere"),
        lambda at: at.prepare(TWICE[0], f"data.path={at.folder / 'recall'}"),
    ),
    Row(
        "no such file; give the path of a tokenizer.json",
        lambda at: with_tokenizer(at, "nowhere.json"),
        lambda at: with_tokenizer(at, at.data / "tokenizer.json"),
    ),
    Row(
        "give data.tokenizer.end_of_text one of its tokens",
        lambda at: with_tokenizer(at, at.data / "tokenizer.json", "data.tokenizer.end_of_text=zzz"),
        lambda at: with_tokenizer(at, at.data / "tokenizer.json", "data.tokenizer.end_of_text=<|endoftext|>"),
    ),
    Row(
        "name its own in data.tokenizer.end_of_text",
        lambda at: with_tokenizer(at, tokenizer_named(at, "<fin>")),
        lambda at: with_tokenizer(at, tokenizer_named(at, "<fin>"), "data.tokenizer.end_of_text=<fin>"),
    ),
]


def csv_of(at: At, name: str, column: str) -> list[str]:
    texts = [json.loads(line)["text"] for line in at.documents().read_text().splitlines()]
    at.write(name, "\n".join([column, *texts]) + "\n")
    return at.own(files=name)
