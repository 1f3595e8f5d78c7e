"""`emergence-train import hf`: existing models become a run, on whose checkpoints positions, tasks and the analyses work.

Where the decoder computes the same (hf_names.py), the run's model is a decoder; any other causal language model is run by
transformers (kind hf). Weights are those of their files to the last bit (of float64 to float32's), each in the narrowest dtype
that holds it. Text is tokenized without tokens added at the ends: windows are cut from the middle of documents, as in training.
"""

import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from emergence_train import config as configs
from emergence_train import files
from emergence_train.checkpoint import format as checkpoints
from emergence_train.checkpoint import saver
from emergence_train.checkpoint.format import WEIGHTS, step_name
from emergence_train.cluster import launcher
from emergence_train.config import Config, Data, TaskConfig
from emergence_train.convert import hf_names, hf_source
from emergence_train.convert.hf_export import ORIGINAL_FILES
from emergence_train.convert.hf_source import HFSource
from emergence_train.convert.logits import ORIGINAL, compare_import, in_words, kept_logits, original_logits
from emergence_train.data import identity, sources
from emergence_train.data import tokenizer as tokenizers
from emergence_train.data.dataset import Dataset, load_index
from emergence_train.data.prepare import prepare
from emergence_train.errors import InputError, RunError
from emergence_train.evaluation.at_checkpoint import Evaluator, renamed
from emergence_train.evaluation.offline import chosen, measure
from emergence_train.evaluation.saved_model import load_model
from emergence_train.input_files import read_text
from emergence_train.models.config import ModelConfig
from emergence_train.models.decoder_config import DecoderConfig
from emergence_train.models.hf_config import HFConfig, stored_tensors
from emergence_train.models.imported import Imported
from emergence_train.parallel.mesh import Mesh
from emergence_train.parallel.ranks import start
from emergence_train.recorder.environment import write_environment
from emergence_train.recorder.position_sums import rows as position_rows
from emergence_train.recorder.run_log import RunLog

SEQUENCE = 1024  # tokens, by default, where the model takes so many
HELD_OUT = 0.9  # share of the documents of a given text that is validation text: nothing is trained on the rest
SUFFIXES = (".yaml", ".yml")
PREPARED = {"data", ORIGINAL_FILES, identity.FILE, identity.TOKENIZER}  # what an import writes before config.yaml


@dataclass(frozen=True)
class ImportOptions:
    """What the command line says beside the models; each None where it does not.

    texts: a configuration whose `data` is taken, or text files; None: the embedded sample. sequence: tokens.
    """

    steps: list[int] | None = None
    tokens_per_step: int | None = None
    texts: list[str] | None = None
    sequence: int | None = None
    tokenizer: str | None = None
    begin_token: str | None = None  # or "none"; None: as the tokenizer has it
    tasks: list[str] | None = None


def import_hf(models: list[str], run: Path, options: ImportOptions, log: Callable[[str], None] = print) -> Path:
    """Import models as the steps of `run`, with their positions and tasks; steps that it has already are left as they are."""
    if launcher.find().world > 1:
        raise InputError("import runs in one process; start it without a launcher")
    by_step = _by_step(hf_source.sources_of(models, log), options.steps)
    described = _same_config(list(by_step.values()))
    model = _model(described, run.name, log)
    before = _before(run, model, options)  # where it is refused nothing is written, not even the lock
    with files.lock(run, busy="another process writes it; wait for it", other="--out") as no_locks:
        if no_locks:
            log(no_locks)
        fresh = not _visible(run)
        try:
            is_new = not _has_steps(run)
            config = _config(run, model, by_step, options, log)
            assert config.imported is not None
            precision, step_tokens = config.training.precision, config.step_tokens
            target = _Target(run, config.name, config.model, config.imported, precision, step_tokens, described)
            steps = _not_imported(run, by_step, log)
            first = [target.read(source, log, check=is_new) for source in list(steps.values())[:1]]
            if is_new:
                _prepare(config.data, run, options.texts or [], log)
            dataset = Dataset(config.data, config.seed, verify=True)
            identity.keep(run, dataset)
            evaluator = Evaluator(config.tasks, dataset)
            if steps:  # else none is scored
                evaluator.check_items(
                    run / "evaluations", lambda task: _rescored(run, task, before.tasks if before else [])
                )
            files.write_bytes(run / "config.yaml", config.to_yaml().encode())
            _import_steps(target, steps, first, evaluator, log)
        except BaseException:
            if fresh and not _has_steps(run):
                shutil.rmtree(run, ignore_errors=True)  # nothing was imported
            raise
    return run


def _rescored(run: Path, task: TaskConfig, before: list[TaskConfig]) -> str:
    """What to do about scores of other items: an import replaces none."""
    name = task.table_name if task in before else f"{task.table_name}={task.file}" if task.file else task.task
    command = f"emergence-train evaluate {run} --tasks {shlex.quote(name)} --replace"
    return f"{renamed(task)}remove its old scores with `{command}`, then import again"


@dataclass(frozen=True)
class _Target:
    """The run that is written, and transformers' configuration of what is imported."""

    run: Path
    name: str
    model: ModelConfig
    imported: Imported
    precision: str
    step_tokens: int
    described: Any

    def header(self, dataset: Dataset) -> dict:
        """The first line of metrics.jsonl."""
        return {
            "run": self.name,
            "params": self.model.non_embedding_parameters(),
            "parameters": self.model.parameters(),
            "vocabulary": dataset.fingerprint,
            "sequence": dataset.sequence,
            "flops_per_token": self.model.flops_per_token(dataset.sequence),
            "total_tokens": None,
            "imported": True,
        }

    def read(self, source: HFSource, log: Callable[[str], None], *, check: bool = False) -> "_Read":
        """Read a model; with `check` it is tried too, where transformers runs it."""
        theirs = hf_source.read_model(source, log)
        if check and isinstance(self.model, HFConfig):
            hf_source.check(theirs, source, log)
        logits = original_logits(self.model, theirs)
        weights = {name: tensor.detach() for name, tensor in stored_tensors(theirs).items()}
        if isinstance(self.model, DecoderConfig):
            return _Read(hf_names.decoder_weights(weights, self.model, self.described.model_type), logits)
        return _Read({f"{hf_names.WRAPPED}{name}": weight for name, weight in weights.items()}, logits)


class _Read(NamedTuple):
    """A model's weights by our names, a tied matrix once, in float32 but for buffers of integers; and its logits."""

    weights: dict[str, Tensor]
    logits: Tensor | None


def _by_step(given: list[HFSource], steps: list[int] | None) -> dict[int, HFSource]:
    """The sources by step, in order: as given, or as revisions and directories are named."""
    if steps is not None and len(steps) != len(given):
        raise InputError(f"--steps {','.join(map(str, steps))}: give one step for each of the {len(given)} models")
    named = steps if steps is not None else [source.step for source in given]
    if len(given) == 1 and named == [None]:
        named = [1]
    for source, step in zip(given, named):
        if step is None:
            raise InputError(
                f"{source.label}: its name has no step (as step1000 or checkpoint-1000 has); give --steps, one for each model"
            )
    by_step: dict[int, HFSource] = {}
    for step, source in zip(named, given):
        if step is not None and (other := by_step.setdefault(step, source)) is not source:
            raise InputError(
                f"{other.label} and {source.label} have the same step {step}; leave one out, or give --steps, another for each"
            )
    return dict(sorted(by_step.items()))


def _same_config(models: list[HFSource]) -> Any:
    """The transformers configuration of all sources. Raises InputError where they are different models."""
    first = hf_source.read_config(models[0])
    wanted = hf_source.plain(first)
    for source in models[1:]:
        other = hf_source.plain(hf_source.read_config(source))
        for key in sorted(wanted.keys() | other.keys()):
            if wanted.get(key) != other.get(key):
                raise InputError(
                    f"{source.label}: has {key} = {other.get(key)}, and {models[0].label} {wanted.get(key)}; the steps of a "
                    f"run are of one model: import this one as another run"
                )
    return first


# --------------------------------------------------------------------------------------------------- the configuration


def _model(described: Any, name: str, log: Callable[[str], None]) -> ModelConfig:
    decoder = hf_names.decoder_config(described)
    model: ModelConfig = decoder if isinstance(decoder, DecoderConfig) else _wrapped(described)
    kind = f"run by transformers, since {decoder}" if isinstance(decoder, str) else "run by the decoder"
    log(f"{name}: {described.model_type}, {model.non_embedding_parameters():,} parameters + embedding, {kind}")
    return model


def _config(
    run: Path, model: ModelConfig, by_step: dict[int, HFSource], options: ImportOptions, log: Callable[[str], None]
) -> Config:
    """The run's configuration, in whose directory its tokenizer is then; that of an earlier import with more steps."""
    before = _before(run, model, options)
    labels = {str(step): source.label for step, source in by_step.items()}
    first = next(iter(by_step.values()))
    if before is not None and before.imported is not None:
        places, per_step = labels | before.imported.sources, before.imported.tokens_per_step
        data, tasks, begin = before.data, before.tasks, before.imported.begin_token
        if not (run / ORIGINAL_FILES).is_dir():
            _keep_later(run, first, data.tokenizer.end_of_text)
    else:
        places, per_step, tasks = labels, options.tokens_per_step or 0, []
        data, begin = _data(run, model, first, options, log)
    tasks = chosen(tasks, options.tasks)
    places = dict(sorted(places.items(), key=lambda item: int(item[0])))
    tokens = max(int(step) for step in places) * per_step
    return Config.model_validate(
        {
            "name": run.resolve().name,
            "out": str(run.parent),
            "data": data.model_dump(mode="json"),
            "model": model,
            "training": {"tokens": max(tokens, 1), "batch": 1, "schedule": {"kind": "constant", "lr": 1.0}},
            "checkpoints": {"every_tokens": 1, "save_state": "every"},
            "logging": {"wandb": "disabled"},
            "tasks": [task.model_dump(mode="json") for task in tasks],
            "imported": {"format": "hf", "sources": places, "begin_token": begin, "tokens_per_step": per_step},
        }
    )


def _wrapped(described: Any) -> HFConfig:
    text = described.get_text_config()
    named = [getattr(text, name, None) or 0 for name in ("max_position_embeddings", "n_positions")]
    longest = next((length for length in named if length > 0), 2048)  # XLNet's is -1: any
    return HFConfig(vocab_size=text.vocab_size, max_sequence=longest, transformers=hf_source.plain(described))


def _before(run: Path, model: ModelConfig, options: ImportOptions) -> Config | None:
    """The configuration of an earlier import of the same model; None where there is nothing yet."""
    names = _visible(run)
    if not names or (names <= PREPARED and (run / ".lock").is_file()):  # what a killed preparation leaves is taken up
        return None
    if not (run / "config.yaml").is_file():
        raise InputError(f"{run}: holds files and is no run; choose another --out")
    config = configs.load_run(run)
    if config.imported is None:
        raise InputError(f"{run}: is a run that was trained here; choose another --out")
    if not _has_steps(run):  # killed before its first checkpoint
        return None
    if config.model != model:
        raise InputError(f"{run}: is an import of another model; choose another --out")
    if options.tokens_per_step not in (None, config.imported.tokens_per_step):
        raise InputError(
            f"{run}: was imported with --tokens-per-step {config.imported.tokens_per_step}; give that, or choose another --out"
        )
    if options.texts or options.sequence or options.tokenizer or options.begin_token:
        raise InputError(f"{run}: has its text already; leave --data, --sequence, --tokenizer and --begin-token out")
    return config


def _visible(run: Path) -> set[str]:
    """The names in the run's directory; no hidden ones, such as the lock."""
    return {entry.name for entry in run.iterdir() if not entry.name.startswith(".")} if run.is_dir() else set()


def _has_steps(run: Path) -> bool:
    return any((run / "checkpoints").glob("step-*"))


def _data(
    run: Path, model: ModelConfig, source: HFSource, options: ImportOptions, log: Callable[[str], None]
) -> tuple[Data, int | None]:
    """The text in the model's tokens, prepared where a configuration has them, else to be prepared in the run's directory; and
    the token before every sequence."""
    origin = source if options.tokenizer is None else hf_source.source_of(options.tokenizer)
    content, kept, end, longest, begin = hf_source.read_tokenizer(origin)
    texts = options.texts or []
    given = configs.load(texts[0]).data if len(texts) == 1 and texts[0].endswith(SUFFIXES) else None
    end = (given.tokenizer.end_of_text if given else None) or end
    tokenizer = tokenizers.normalised(content, end)
    if options.begin_token is not None:
        begin = _token(tokenizer, options.begin_token)
    room = model.max_sequence - (begin is not None)
    sequence = options.sequence or (given.sequence if given else min(room, longest or room, SEQUENCE))
    if sequence > room:
        raise InputError(f"{source.label}: takes {room} tokens, not {sequence}; give --sequence {room} or less")
    if (size := tokenizers.size(tokenizer)) > model.vocabulary:
        raise InputError(
            f"{source.label}: its tokenizer has {size} tokens and its embedding {model.vocabulary}; give its own with --tokenizer"
        )
    if begin is not None:
        log(
            f"{source.label}: every sequence begins with {tokenizer.id_to_token(begin)} (--begin-token none leaves it out)"
        )
    files.write_bytes(run / identity.TOKENIZER, tokenizer.to_str().encode())
    _keep(run / ORIGINAL_FILES, source, kept)
    if given is not None and given.sequence == sequence and _prepared_with(Path(given.path), run):
        log(f"{given.path}: is prepared in this model's tokens")
        return given, begin
    parts = given.model_dump(mode="json") if given else _sections(texts)
    parts |= {"path": str(run / "data"), "sequence": sequence}
    parts["tokenizer"] = {"file": str(run / identity.TOKENIZER), "end_of_text": end}
    return Data.model_validate(parts), begin


def _prepare(data: Data, run: Path, texts: list[str], log: Callable[[str], None]) -> None:
    """Prepare the text, unless it is that of a configuration, in a directory of its own."""
    if data.path != str(run / "data"):
        return
    try:
        prepare(data, log, trained=False)
    except InputError as error:
        if texts and "for one validation sequence" in str(error):
            raise InputError(
                f"--data {' '.join(texts)[:80]}: has no {data.sequence + 1} tokens, which one sequence takes; give longer "
                f"text, or a shorter --sequence"
            ) from None
        raise


def _keep_later(run: Path, source: HFSource, end: str | None) -> None:
    """Keep, of a run whose import kept none, the files of its model; of the tokenizer only where the run's is its own."""
    content, kept, *_ = hf_source.read_tokenizer(source)
    is_own = tokenizers.normalised(content, end).to_str() == read_text(run / identity.TOKENIZER)
    _keep(run / ORIGINAL_FILES, source, kept if is_own else {})


def _keep(folder: Path, source: HFSource, kept: dict[str, bytes]) -> None:
    """Keep the tokenizer's files, the generation settings and config.json, whose special tokens an export gives out again."""
    shutil.rmtree(folder, ignore_errors=True)  # of an import that was killed
    files.make_directory(folder)
    for name, content in (kept | hf_source.read_files(source, ["generation_config.json"])).items():
        files.write_bytes(folder / name, content)
    files.write_json(folder / "config.json", hf_source.plain(hf_source.read_config(source)))


def _token(tokenizer: Tokenizer, text: str) -> int | None:
    """The id of --begin-token; None for "none"."""
    if text == "none":
        return None
    if (token := tokenizer.token_to_id(text)) is None:
        raise InputError(f"--begin-token {text}: the tokenizer has no such token; give one of its own, or none")
    return token


def _prepared_with(data: Path, run: Path) -> bool:
    """Whether a prepared data set has the run's tokenizer."""
    if not (data / "dataset.json").is_file():
        return False
    return load_index(data)["tokenizer"]["fingerprint"] == tokenizers.fingerprint(run / identity.TOKENIZER)


def _sections(texts: list[str]) -> dict:
    """The sources of a data section: the files as one domain, or the embedded sample."""
    if texts:
        return {
            "sources": [{"domain": "text", "files": texts}],
            "validation": {"fraction": HELD_OUT, "domain_sequences": 0},
        }
    return {
        "sources": [{"domain": domain, "sample": domain} for domain in sources.sample_domains()],
        "validation": {"fraction": 0.5, "sequences": 64, "domain_sequences": 16},
    }


# -------------------------------------------------------------------------------------------------------- the checkpoints


def _not_imported(run: Path, by_step: dict[int, HFSource], log: Callable[[str], None]) -> dict[int, HFSource]:
    """The steps that are to be read, in order."""
    done = {step for step in _measured(run) if (run / "checkpoints" / step_name(step) / checkpoints.MANIFEST).is_file()}
    for step in by_step:
        if step in done:
            log(f"step {step}: is imported already")
    return {step: source for step, source in by_step.items() if step not in done}


def _import_steps(
    target: _Target, steps: dict[int, HFSource], first: list[_Read], evaluator: Evaluator, log: Callable[[str], None]
) -> None:
    """`first`: what was read of the first step; it is emptied, and with it the memory."""
    run, mesh = target.run, start(None)
    write_environment(run, 1, mesh.device, 0)
    run_log = RunLog(run, target.header(evaluator.dataset), max(_measured(run), default=0), [])
    for number, (step, source) in enumerate(steps.items(), 1):
        log(f"step {step}: {source.label} ({number} of {len(steps)})")
        _write_checkpoint(
            run, step, *(first.pop() if first else target.read(source, log))
        )  # all steps are of one model
        _check_logits(target, step, source, log)
        _measure(target, run_log, step, evaluator, mesh, log)
    if problem := run_log.close():
        raise RunError(problem)
    log(f"written: {run} ({len(_measured(run))} checkpoints)")


def _measured(run: Path) -> set[int]:
    """Steps that have a table of positions."""
    return {checkpoints.step_of(path) for path in (run / "positions").glob("step-*.parquet")}


def _write_checkpoint(run: Path, step: int, weights: dict[str, Tensor], logits: Tensor | None) -> None:
    folder = run / "checkpoints"
    files.make_directory(folder)
    temporary = saver.begin(folder, step)
    pieces = {f"{WEIGHTS}|0|{name}": _narrowest(weight.flatten().float()) for name, weight in weights.items()}
    pieces |= {} if logits is None else {ORIGINAL: logits}
    entry = checkpoints.write_tensors(temporary / checkpoints.shard_name(0, 1), pieces)
    shapes = {name: list(weight.shape) for name, weight in weights.items()}
    state = {"step": step, "parameters": shapes, "world_size": 1, "updates": 0.0, "loop": {}}
    saver.commit(temporary, folder / step_name(step), step, [entry], state)


def _narrowest(weight: Tensor) -> Tensor:
    """A float32 tensor in the first 16-bit dtype that holds all its values: that of the file it came from, where it was one."""
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal((narrow := weight.to(dtype)).float(), weight):
            return narrow
    return weight


def _check_logits(target: _Target, step: int, source: HFSource, log: Callable[[str], None]) -> None:
    """Raise RunError where the checkpoint, as it is read, is another model than the original; it is removed. Log a difference
    that only rounding explains."""
    folder = checkpoints.newest(target.run, step)
    if (original := kept_logits(folder)) is None:
        return
    compared = compare_import(target.model, load_model(target.model, folder).eval(), original)
    if not compared.is_noise:
        shutil.rmtree(folder)
        raise RunError(f"{source.label}: is another model once imported: its logits {in_words(compared)}")
    if compared.rounding is not None:
        log(f"{source.label}: is sensitive to rounding: its logits {in_words(compared)}")


def _measure(
    target: _Target, run_log: RunLog, step: int, evaluator: Evaluator, mesh: Mesh, log: Callable[[str], None]
) -> None:
    """Positions, mean losses and tasks of a checkpoint."""
    import pandas as pd

    folder = checkpoints.newest(target.run, step)
    measured = measure(target.model, target.precision, folder, evaluator, mesh, target.imported)
    losses, tokens = measured.losses, step * target.step_tokens
    owner: dict[str, Any] = {
        "run": target.name,
        "params": run_log.header["params"],
        "step": step,
        "tokens": tokens,
    }
    table = pd.concat([position_rows(of_split, name) for name, of_split in measured.sums.items()], ignore_index=True)
    run_log.positions(step, table.assign(**owner))
    run_log.write("validation", step=step, tokens=tokens, seconds=None, loss=losses, **evaluator.comparable(losses))
    if measured.scores.rows:
        run_log.evaluations(step, evaluator.table(measured.scores, **owner, losses=losses))
        for note in evaluator.notes:
            log(note)
    if problem := run_log.flush():
        raise RunError(problem)
    log(f"step {step}: " + "  ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))
