"""Every error that says what to do: the situation is made, the message seen, what it says done, and the command then passes.

The rows stand in the files remedy_rows*.py. A message of the source that names a remedy has a row there or a reason
in EXEMPT: the last tests read the source. `cli.main` is called in this process, on data of a few kilobytes.
"""

import ast
import contextlib
import csv
import io
import re
import shutil
from pathlib import Path

import pytest

from emergence_train import cli
from remedy_rows import CONFIG, DATA, PLANS, STEP, At, Row
from remedy_rows_analyses import ANALYSES, LAUNCHERS, LOGS, WEIGHTS
from remedy_rows_grok import SWEEPS, SWEEPS_EXEMPT
from remedy_rows_ladder import LADDER_EXEMPT, LADDERS
from remedy_rows_runs import RUNS
from support import ROOT, command, locked

TRAIN = [*RUNS, *WEIGHTS]  # slow
ROWS = [*CONFIG, *PLANS, *LADDERS, *SWEEPS, *DATA, *TRAIN, *ANALYSES, *LOGS, *LAUNCHERS]

OTHER_TESTS = "tried where its situation is made: "
EXEMPT = (
    {  # of a message: why it has no row
        "and {} has {}; set data.path to the data it was trained on": OTHER_TESTS + "data/test_identity.py",
        "as an encoder's do, so it has no losses": OTHER_TESTS + "convert/test_hf_import.py",
        "which no checkpoint holds; let it keep ": OTHER_TESTS + "optim/test_optim_state.py",
        "names no compiled_parts; set training.compile=false": OTHER_TESTS + "models/test_model_registry.py",
        "has {}; set training.activation_checkpointing=none": OTHER_TESTS + "models/test_model_registry.py",
        "is of kind {}, not {}; leave it out and give sizes": OTHER_TESTS + "models/test_model_registry.py",
        "no `activations`; set training.micro_batch=1": OTHER_TESTS + "models/test_model_registry.py",
        "a plan needs its `activations`, `work`": OTHER_TESTS + "models/test_model_registry.py",
        "another export writes it; wait": "two processes at once",
        "part of an export that was killed; delete it": OTHER_TESTS + "convert/test_hf_export.py",
        "and may compute another one; import it again": OTHER_TESTS + "convert/test_hf_import.py",
        "items of another kind go into a file of their own": OTHER_TESTS + "evaluation/test_tasks.py",
        'give all rows "extract": "number", or none': OTHER_TESTS + "evaluation/test_tasks.py",
        "needs; write the number alone": OTHER_TESTS + "evaluation/test_tasks.py",
        "is not UTF-8; give it as text": OTHER_TESTS + "evaluation/test_text_samples.py",
        "and none surely was; give a later --step": OTHER_TESTS + "evaluation/test_memorisation_probe.py",
        "nothing that it was trained on is known; give a later": OTHER_TESTS + "evaluation/test_memorised_branches.py",
        "which are the controls; give texts of your own with --texts": OTHER_TESTS
        + "evaluation/test_memorisation_probe.py",
        "and its samples up to there are unknown; restore it": OTHER_TESTS + "evaluation/test_memorised_branches.py",
        "install them (libaio-dev), or give cpu": OTHER_TESTS + "training/test_nvme.py",
        "make room, or set training.zero.nvme_path to another": OTHER_TESTS + "training/test_nvme.py",
        "they do not compare; analyse runs of the same prepared data": "needs runs of two tokenizers and an emergent task",
        "{}: {}; name a file, a run directory or what is written": OTHER_TESTS + "analysis/test_streams.py",
        "standard input is closed; name a file, or write to a pipe": OTHER_TESTS + "analysis/test_streams.py",
        "{}: {}; wait for the run's first line": OTHER_TESTS + "report/test_serve.py",
        "is finished and has no losses by position; restore its positions/": OTHER_TESTS + "report/test_serve.py",
        "--serve {}: the port {}; give another, or 0": OTHER_TESTS + "report/test_serve.py",
        "is a task that is generated, and its scores would be": OTHER_TESTS + "evaluation/test_offline.py",
        "tokens, which one sequence takes; give longer text": OTHER_TESTS + "convert/test_hf_import.py",
        "as several runs have; leave --run out": OTHER_TESTS + "analysis/test_runs_of_files.py",
        "its runs have no metrics; name a run that has logged": OTHER_TESTS + "analysis/test_log_lines.py",
        "scores of a run, step, task and metric differ by {} ({}); give": OTHER_TESTS + "analysis/test_score_parts.py",
        "rows of equal steps differ by {} ({}), as several runs do; give": OTHER_TESTS + "analysis/test_log_runs.py",
        "write it before each, as 'step 10 loss 6.1'": OTHER_TESTS + "analysis/test_log_lines.py",
        "rows, as where nobody filled it in; name a loss": OTHER_TESTS + "analysis/test_log_beside.py",
        "which is no curve; name the log of one run": OTHER_TESTS + "analysis/test_log_runs.py",
        "name the log of one run, or give --column run={}": OTHER_TESTS + "analysis/test_log_runs.py",
        "its results have no metrics that are numbers; give": OTHER_TESTS + "analysis/test_harnesses.py",
        "has no rows of scores; name a file that has some": OTHER_TESTS + "analysis/test_json_scores.py",
        "its W&B files hold no history; name a run": OTHER_TESTS + "analysis/test_wandb_offline.py",
        "it or its {} is no JSON that can be read; give another --format": "only with --format helm of a file that is none",
        "is no port; give a number from 0 to 65535": "a typing error",
        "a directory without a log of {}; name a file of it, or give": OTHER_TESTS + "analysis/test_logs.py",
        "no run of MLflow's file store; name mlruns, or RUN": OTHER_TESTS + "analysis/test_mlflow.py",
        "{}: cannot be read as {} ({}); give --format": "a file that cannot be opened: root reads all",
        "holds no event file": "needs the extra tensorboard",
        "its event files hold no scalars": "needs the extra tensorboard",
        "learning rate: must be finite, not negative": "Python's planned_lr alone reaches it",
        "counts no token; drop it": OTHER_TESTS + "analysis/temporal/test_position_law.py",
        "holds {}; choose with run= one of": OTHER_TESTS + "test_opened_run.py",
        "has no positions of split {}; it has": OTHER_TESTS + "test_opened_run.py",
        "has no training curve; give plot() one of": "names what there is",
        "was moved, deleted or replaced while the run wrote to it; put it back": OTHER_TESTS
        + "recorder/test_run_log.py",
        "Recorder(step={}) continues it there": OTHER_TESTS + "recorder/test_api.py",
        "choose another path, or step=0": OTHER_TESTS + "recorder/test_api.py",
        "so step {} cannot be resumed; resume from a checkpoint": OTHER_TESTS + "recorder/test_api.py",
        "holds no run, so step {} cannot be resumed; give the run's own": OTHER_TESTS + "recorder/test_api.py",
        "are negative; give add() -log p of": OTHER_TESTS + "recorder/test_api.py",
        "{}({}={}): give {}": OTHER_TESTS + "recorder/test_arguments.py",
        "among its values; give booleans, or 0 and 1": OTHER_TESTS + "recorder/test_arguments.py",
        "is given twice for one checkpoint; give it once": OTHER_TESTS + "recorder/test_arguments.py",
        "higher_is_better={}; give True or False": OTHER_TESTS + "recorder/test_arguments.py",
        "this Recorder is closed; make another": OTHER_TESTS + "recorder/test_api.py",
        "follows {}; steps must increase": OTHER_TESTS + "recorder/test_api.py",
        "has no losses; call add()": OTHER_TESTS + "recorder/test_api.py",
        "need the loss on held-out text beside them": OTHER_TESTS + "recorder/test_api.py",
        "or an object with .logits; wrap it": OTHER_TESTS + "recorder/test_api.py",
        "PositionCallback sees the model called without": "other settings of another trainer",
        "PositionCallback: {} returns no": OTHER_TESTS + "callbacks/test_lightning.py",
        "PositionCallback: {} data loaders of": OTHER_TESTS + "callbacks/test_lightning.py",
        "PositionCallback: split={}; give each": OTHER_TESTS + "callbacks/test_lightning.py",
        "has losses already; move those of": OTHER_TESTS + "recorder/test_api.py",
        "no table given; name": "Python alone: the command line asks for one",
        "no {} table given; name": "Python alone: the command line asks for one",
        "{}: cannot be read ({}); fix that, then run again": "a disk that fails for a while",
        "it was saved by another model": "names no remedy: the run is another's",
        "is a link to {}, which does not exist": "an unmounted disk; tests/faults",
        "restore the config.yaml of its run": "config.yaml and state of two runs in one directory",
        "holds a model of another shape; choose another name": "a run directory whose state is another model's",
        "its model has another shape; give": OTHER_TESTS + "training/test_branch.py",
        "{}: is not UTF-8; convert it first": OTHER_TESTS + "evaluation/test_tasks.py",
        'extract is {}; write "number"': OTHER_TESTS + "evaluation/test_tasks.py",
        "--tasks: an empty name; give names": OTHER_TESTS + "evaluation/test_offline.py",
        "is empty or no configuration; restore it": OTHER_TESTS + "training/test_run.py",
        "in {} beside its weights; train": OTHER_TESTS + "analysis/test_position_weights.py",
        "has a split in common; train both": OTHER_TESTS + "analysis/test_position_weights.py",
        "saved by a newer version of emergence-train": "needs a version that does not exist yet",
        "was removed meanwhile, as its run keeps few": OTHER_TESTS + "checkpoint/test_checkpoint_format.py",
        "is no state of this checkpoint": OTHER_TESTS + "checkpoint/test_checkpoint_format.py",
        "no state is left whole; run again": "a branch whose every state is damaged: not tried",
        "{}: {}: {} is not a number; remove that line": OTHER_TESTS + "recorder/test_run_log.py",
        "are read of one file; if they are meant, split": "20 million rows; recorder/test_table_files.py",
        "but only {} rows; give each checkpoint the same positions": OTHER_TESTS + "analysis/test_position_matrix.py",
        "holds no training text of the domain {}": OTHER_TESTS + "data/test_prepare_inputs.py",
        "may be written; draw more different ones": OTHER_TESTS + "data/test_planted.py",
        "is held out and asks among {} symbols; give": OTHER_TESTS + "data/test_planted.py",
        "has changed while {} was prepared": OTHER_TESTS + "data/test_prepare_inputs.py",
        "it is empty, which no compressed file is": "names no remedy: the text is not there",
        "cannot encode this text ({}); give another": OTHER_TESTS + "data/test_tokenizer.py",
        "is damaged and cannot be set aside": "a directory that cannot be written: root writes all",
        "make its directory writable": "a directory that cannot be written: root writes all",
        "cannot be locked ({}); choose another {}": "a directory that cannot be written: root writes all",
        "restore the run's tokenizer.json": OTHER_TESTS + "convert/test_hf_export.py",
        "and the hub cannot be reached; give a directory": OTHER_TESTS + "convert/test_hf_import.py",
        "give a directory that save_pretrained wrote, or a name with network": OTHER_TESTS
        + "convert/test_hf_import.py",
        "of which transformers has no causal language model": OTHER_TESTS + "convert/test_hf_import.py",
        "give the directory that save_pretrained wrote": OTHER_TESTS + "convert/test_hf_import.py",
        "its weights are quantised; give": "weights that only a GPU's library reads",
        "({} are missing); give a complete checkpoint": OTHER_TESTS + "convert/test_hf_import.py",
        "cannot be converted into one; give --tokenizer": "a tokenizer written in Python alone",
        "its tokenizer ({}); give one with": OTHER_TESTS + "convert/test_hf_import.py",
        "import runs in one process": "several processes",
        "give --steps, one for each model": OTHER_TESTS + "convert/test_hf_import.py",
        "give one step for each of the {} models": OTHER_TESTS + "convert/test_hf_import.py",
        "have the same step {}; leave one out": OTHER_TESTS + "convert/test_hf_import.py",
        "holds an adapter ({}) of a model; merge it": OTHER_TESTS + "convert/test_hf_source.py",
        "hold NaN or infinity ({}); give a checkpoint before": OTHER_TESTS + "convert/test_hf_source.py",
        "import this one as another run": OTHER_TESTS + "convert/test_hf_import.py",
        "choose another --out": OTHER_TESTS + "convert/test_hf_import.py",
        "leave --data, --sequence, --tokenizer and --begin-token out": OTHER_TESTS + "convert/test_hf_import.py",
        "the tokenizer has no such token; give one of its own, or none": OTHER_TESTS + "convert/test_hf_import.py",
        "tokens, not {}; give --sequence {} or less": OTHER_TESTS + "convert/test_hf_import.py",
        "and its embedding {}; give its own with --tokenizer": OTHER_TESTS + "convert/test_hf_import.py",
        "is an imported run, which is not trained on; begin another": OTHER_TESTS + "convert/test_hf_import.py",
        "and is not trained; set model.kind to decoder": OTHER_TESTS + "convert/test_hf_import.py",
        "write it as NAME=ITEMS.jsonl": OTHER_TESTS + "evaluation/test_offline.py",
        "give one that holds lm-eval's task files": OTHER_TESTS + "evaluation/test_offline.py",
        "is for tasks of lm-eval; name one": OTHER_TESTS + "evaluation/test_offline.py",
        "include_path is for tasks of lm-eval; leave it out": "as `shots are for tasks of lm-eval`, which has a row",
        "--push {}: {}; {} is complete: log in": OTHER_TESTS + "convert/test_hf_export.py",
        "holds NaN or infinity; export an earlier step": OTHER_TESTS + "convert/test_hf_export.py",
        "which is infinite in {}; give --dtype": OTHER_TESTS + "convert/test_hf_export.py",
        "--column and --loss out, they are for results of": OTHER_TESTS + "analysis/test_scores.py",
        "holds no results of {}; name a file of them": OTHER_TESTS + "analysis/test_score_containers.py",
        "name a file of results, or a directory that holds some": OTHER_TESTS + "analysis/test_score_containers.py",
        "cannot be read as {} ({}); name another file, or": OTHER_TESTS + "analysis/test_score_containers.py",
        "its JSON is not as {} writes it; name another": OTHER_TESTS + "analysis/test_score_containers.py",
        "not task results that are known; give --format": OTHER_TESTS + "analysis/test_scores.py",
        "--format {}: unknown; choose {}": OTHER_TESTS + "analysis/test_scores.py",
        "write it as N or RUN=N": OTHER_TESTS + "analysis/test_scores.py",
        "its tasks have no metrics that are numbers": "names the file that has them",
        "correct --column {}={}": OTHER_TESTS + "analysis/test_scores.py",
        "loss unit {}: unknown; choose": OTHER_TESTS + "analysis/test_log_units.py",
        "no column was recognised as {} (it has {}); give {}": OTHER_TESTS + "analysis/test_scores.py",
        "none of its scores is a number; name their column": OTHER_TESTS + "analysis/test_messy_logs.py",
        "has no scores; give results": "an empty list of tasks",
        "; write it in all cells of a task or in none": OTHER_TESTS + "analysis/test_score_units.py",
        "; write all of a run's in one unit": OTHER_TESTS + "analysis/test_score_units.py",
        "not said by the results; give {}": OTHER_TESTS + "analysis/test_scores.py",
        "no such run; the results are of": OTHER_TESTS + "analysis/test_scores.py",
        "the results have no such metric{}; give a log": OTHER_TESTS + "analysis/test_scores.py",
        "name the runs alike": OTHER_TESTS + "analysis/test_scores.py",
        "give a log that covers them": OTHER_TESTS + "analysis/test_scores.py",
        "transformers has no model_type; give a whole": OTHER_TESTS + "convert/test_hf_import.py",
        "install a version that has it": "another version of transformers",
        "transformers has no model for kind {}": "names no remedy: there is none",
        "have no softcap, sinks or ALiBi": "names no remedy: there is none",
        "has no tokenizer.json, and": OTHER_TESTS + "data/test_identity.py",
        "validation set {} has": "a part of `altered: delete {} and prepare again`, which has a row",
        "free some or choose another data.path": "a full disk",
        "is a hub data set: pip install": "a missing package, or the network",
        "cannot be opened: {}": "the network",
        "broke off: {}; run prepare again": "the network",
        "cannot be fetched from the hub: {}; give a local file": "the network; the remedy is the row of tokenizer.json",
        "a tokenizing process was killed": OTHER_TESTS + "data/test_prepare.py",
        "set HF_DATASETS_CACHE to a copy": "the network",
        "lm-eval asks for sampling": "names no remedy: such a task cannot be run",
        "nothing to score: the continuation": "items are checked before; a task of lm-eval alone reaches it",
        "saved at step {}; run the same command": OTHER_TESTS + "faults",
        "{}; {}": "the watchdog's; faults",
        "no space left on the disk": "a full disk; faults",
        "vocab_size is not set yet": "Python alone",
        "local rank {} has no GPU of its own": "GPUs",
        "the same command tries again": "several processes",
        "is in use; export MASTER_PORT": "several processes; cluster",
        "heterogeneous job); export MASTER_ADDR": "a Slurm job; cluster",
        "the step's first node, has no address": "a Slurm job; cluster",
        "{}: no such file; is this a run directory?": "a question, answered by naming one",
        "has no line of kind 'run'; is this": "a question, answered by naming one",
        "{}: cannot be read ({}); restore it": "a damaged file; tracking/test_sync.py",
        "kind {} is unknown; known: {}": "a list to choose from; test_config.py",
        "W&B was not updated": "the network",
        "logging.tensorboard needs a package": "a missing package; tracking/test_tensorboard.py",
        "exclude that machine and run again": "a broken machine; faults",
        "fix that and run the same command: it": "a disk that fails; faults",
        "and there is no checkpoint to go back to; {}": "its remedy is the row `lower training.schedule.lr`",
        "after {} rewinds; {}": "its remedy is the row `lower training.schedule.lr`",
        "step {}: {}; {}": "its remedy is the row `lower training.schedule.lr`",
        "its state could not be saved; run the same command": "a disk that fails; faults",
        "start each run by itself": "several processes; cluster",
        "make the nodes alike, or set faults.node_check": OTHER_TESTS + "parallel/test_node_check.py",
        "every node must read the data and write": OTHER_TESTS + "parallel/test_node_check.py",
        "make room there and run the same command": OTHER_TESTS + "parallel/test_node_check.py",
        "micro_batch {} x {}; change one of them": "several processes; training/test_run.py",
        "does not divide {} processes; give the number of a node": OTHER_TESTS + "training/test_zero_options.py",
        "DeepSpeed quantises on GPUs only; set it to false": OTHER_TESTS + "training/test_zero_options.py",
        "does not divide {} processes; change it, or start": OTHER_TESTS
        + "training/test_sequence_parallel_training.py",
        "is not a multiple of {} processes; change one of them": "several processes; training/test_auto_micro_batch.py",
        "does not hold micro_batch {}; {}": OTHER_TESTS + "training/test_auto_micro_batch.py",
        "micro_batch is auto: the start of a run resolves it": "Python alone",
    }
    | LADDER_EXEMPT
    | SWEEPS_EXEMPT
)


@pytest.fixture
def at(config_file, data_path, common_path, tmp_path, monkeypatch) -> At:
    def trained() -> Path:
        """A run of four steps with states of steps 2 and 4, made once a session."""
        out = common_path / "remedies"
        with locked(common_path / "remedies.lock"):
            if not (out / "run" / "checkpoints" / "latest").is_file():
                shutil.rmtree(out, ignore_errors=True)
                over = [f"training.tokens={4 * STEP}", f"checkpoints.every_tokens={2 * STEP}", f"out={out}"]
                assert call(["train", str(config_file), *over])[0] == 0
        return out / "run"

    monkeypatch.setenv("WANDB_MODE", "disabled")
    csv.field_size_limit(131_072)  # csv's own, which preparing data raises for the whole process
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):  # of a group that a test began here
        monkeypatch.delenv(name, raising=False)
    situation = At(tmp_path, config_file, data_path, trained, monkeypatch.setenv, monkeypatch.delenv)
    yield situation
    situation.unlock()


def pattern(says: str) -> str:
    return ".*".join(map(re.escape, says.split("{}")))


def call(arguments: list[str]) -> tuple[int, str]:
    """The command's exit code and what it says: in this process, but a model only once in each."""
    if arguments[0] in ("train", "evaluate", "generate", "sync"):
        done = command(*arguments)
        return done.returncode, done.stderr
    written = io.StringIO()
    with contextlib.redirect_stderr(written):
        return cli.main(arguments), written.getvalue()


@pytest.mark.parametrize(
    "row", [pytest.param(r, marks=[pytest.mark.slow] * (r in TRAIN), id=r.says[:50]) for r in ROWS]
)
def test_remedy_works(row: Row, at: At):
    if row.before is not None:
        assert call(row.before(at)) == (0, "")
    code, message = call(row.wrong(at))
    assert re.search(pattern(row.says), message), message
    assert code == row.code
    assert row.code != 2 or len(message.strip().splitlines()) == 1
    code, message = call(row.right(at))
    assert code == 0, message


# ------------------------------------------------------------------------------------------------- none is left out

REMEDY = re.compile(r"; |\b(set|raise|lower|choose|delete|give|pass|run [^;]*first|is this a run directory)\b")
RAISED = ("InputError", "RunError", "ValueError", "PeerLost", "Stopped", "NotYet", "_failure")


def text(node: ast.AST) -> str:
    """A message as the source has it: {} for what is filled in, both sides of a choice."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text, node.values))
    if isinstance(node, ast.BinOp):
        return text(node.left) + text(node.right)
    return "{}"


def messages() -> dict[str, str]:
    """Every message that the framework's source raises, with its place."""
    places = {}
    for path in sorted((ROOT / "emergence_train").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name in RAISED and (message := text(node.args[0])) != "{}":
                    places[message] = f"{path.relative_to(ROOT)}:{node.lineno}"
    return places


def test_every_message_with_a_remedy_is_tried():
    known = [*(row.says for row in ROWS), *EXEMPT]
    left = {f"{place}: {message}" for message, place in messages().items() if REMEDY.search(message)}
    left -= {f"{place}: {message}" for message, place in messages().items() if any(part in message for part in known)}
    assert sorted(left) == []


def test_every_row_is_of_a_message_that_exists():
    """A row whose message was reworded tries nothing."""
    source = "\n".join(
        text(node)
        for path in (ROOT / "emergence_train").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.JoinedStr, ast.Constant, ast.BinOp))
    )
    assert [part for part in (*(row.says for row in ROWS), *EXEMPT) if part not in source] == []
