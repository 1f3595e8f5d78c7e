"""The contracts, as literal lists: names may be added; removing one or changing its meaning needs a release note."""

import argparse
import json

import numpy as np

from analysis.result_tables import write_weights
from emergence_train import cli, errors
from emergence_train.config import Config
from emergence_train.recorder import tables
from emergence_train.section import Section
from support import ROOT

COMMANDS = {
    "prepare": "config overrides",
    "train": "config overrides --from",
    "config": "config overrides --gpus --gpu",
    "plan": "config overrides --gpus --gpu",
    "ladder": "file --slurm --status --jobs",
    "grok": "config --out --jobs --pdf",
    "memorise": "runs --step --prefix --continuation --items --seed --texts --out --pdf",
    "evaluate": "run --step --tasks --split --include-path --replace",
    "analyze temporal": "tables --fit-fraction --split --out --pdf --to-tokens --schedule --format --run --params "
    "--tokens-per-step --column",
    "analyze weights": "runs --out --pdf",
    "analyze emergence": "tables --out --pdf",
    "report": "runs --out --serve --format --run --params --tokens-per-step --column",
    "export": "run --step --format --dtype --shard-bytes --push out",
    "import hf": "models --out --steps --tokens-per-step --data --sequence --tokenizer --tasks",
    "runs": "directory",
    "generate": "run --prompt --step --tokens --temperature --seed",
    "watch": "runs --once --seconds",
    "sync": "runs",
    "doctor": "",
}
EVERY_COMMAND = "--json --debug"
EXIT_CODES = {"RunError": 1, "InputError": 2, "Stopped": 75, "PeerLost": 76}

SOURCE = (
    "domain files hub subset hub_split sample planted text_field weight in_iid own_sequences limit_documents "
    "document_characters"
)
KEYS = {
    "": "name out seed abilities",
    "data": "path sequence shard_tokens workers bad_rows",
    "data.sources": SOURCE,
    "data.ood": SOURCE,
    "data.tokenizer": "vocab_size file hub train_bytes end_of_text",
    "data.validation": "sequences domain_sequences ood_sequences fraction",
    "model": "kind layers width heads kv_heads ffn vocab_size max_sequence rotary_fraction rotary_base tied norm_eps",
    "model.attention": "softcap sinks bias",
    "training": "tokens batch micro_batch precision linears zero_stage document_mask z_loss compile cuda_graphs "
    "activation_checkpointing deterministic threads sequence_parallel",
    "training.zero": "hpz_partition_size quantized_weights offload_optimizer offload_param",
    "training.schedule": "kind lr warmup_tokens final_ratio decay_tokens decay_shape",
    "training.optimizer": "kind betas eps weight_decay clip",
    "training.position_weights": "head body tail vector",
    "training.profile": "steps ranks shapes memory stacks",
    "checkpoints": "every_tokens log_spaced_start save_state keep_last keep_every keep_best state_tokens asynchronous "
    "local_path",
    "faults": "not_finite spike spike_deviations give_up_after compare_replicas silent_seconds hang_seconds node_check",
    "logging": "console_seconds every_rank wandb tensorboard",
    "logging.wandb": "mode project entity group tags notes job_type system checkpoints",
    "samples": "prompts tokens temperature seed",
    "tasks": "task name items file shots seed include_path steps",
    "imported": "format sources tokens_per_step",
}
COLUMNS = {
    "positions": "run:string params:int64 step:int64 tokens:int64 split:string position:int32 count:int64 "
    "loss_sum:double loss_sq_sum:double correct:int64",
    "evaluations": "run:string params:int64 step:int64 tokens:int64 loss:double task:string metric:string value:double "
    "stderr:double items:int64 chance:double higher_is_better:bool",
    "curves": "run:string params:int64 step:int64 tokens:int64 lr:double loss:double",
}
RUN_DIRECTORY = {
    "config.yaml",
    "environment.json",
    "deepspeed.json",
    "data.json",
    "tokenizer.json",
    "metrics.jsonl",
    "positions/step-0000000004.parquet",
    "evaluations/step-0000000004.parquet",
    "checkpoints/latest",
    "checkpoints/step-0000000004/manifest.json",
    "checkpoints/step-0000000004/state.json",
    "checkpoints/step-0000000004/shard-00000-of-00001.safetensors",
}
ROWS = {  # of metrics.jsonl, by kind
    "run": "kind run params parameters vocabulary sequence batch flops_per_token total_tokens",
    "train": "kind step tokens loss grad_norm lr tokens_per_second",
    "validation": "kind step tokens seconds memory loss bits_per_byte log_pplu",
    "evaluation": "kind step tokens seconds share_of_training cut_requests value",
    "samples": "kind step tokens texts",
}
TEMPORAL = {
    "runs": "run split fit_fraction fit_until_tokens selected forecast final models",
    "runs.forecast": "step tokens loss low95 high95",
    "runs.final": "tokens loss low95 high95",
    "runs.models": "name mse r2 heldout_points",
}
EMERGENCE = {
    "tasks": "task metric verdict probability eta size_effect rows sizes",
    "tasks.eta": "value low95 high95",
    "tasks.size_effect": "value low95 high95 p",
}
GROK = {
    "": "budget outcomes runs critical_fraction trend times time_trend efficiency",
    "runs": "params fraction weight_decay seed outcome train_90 heldout_90 updates censored",
    "critical_fraction": "params value low95 high95",
    "trend": "value low95 high95 p",
}
GROK_SECTIONS = {
    "": "name task models fractions weight_decays seeds training stack device",
    "training": "updates lr warmup betas eps batch evaluate_every settle",
}
PLAN = {
    "": "memory_per_gpu communication_bytes_per_step step_seconds tokens_per_second mfu days gpu_hours fits suggestion",
    "memory_per_gpu": "weights gradients optimizer activations logits workspace total",
}
WEIGHTS = {"rows": "variant split region step seeds loss difference low95 high95 p"}
TRACKED = {  # names in Weights & Biases and TensorBoard
    "train": "step tokens train/loss train/grad_norm train/lr perf/tokens_per_second perf/mfu",
    "validation": "step tokens val/iid/loss val/ood/loss val/iid/bits_per_byte val/iid/log_pplu perf/memory",
    "evaluation": "step tokens tasks/copying/acc perf/share_of_tasks",
    "samples": "step tokens samples",
}
OPERATORS = """attention attention_backward attention_sinks_gradient fp8_linear fp8_linear_backward linear_cross_entropy
    linear_cross_entropy_backward position_loss rms_norm rms_norm_backward rotary rotary_attention rotary_attention_backward
    scale swiglu swiglu_backward"""


def commands(parser: argparse.ArgumentParser, name: str = "") -> dict[str, set[str]]:
    """The options and arguments of every command."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        return {
            name: {action.option_strings[-1] if action.option_strings else action.dest for action in parser._actions}
        }
    options: dict[str, set[str]] = {}
    for word, inner in (item for action in below for item in action.choices.items()):
        options |= commands(inner, f"{name} {word}".strip())
    return options


def keys(section: type[Section], name: str = "") -> dict[str, set[str]]:
    """The keys of every section."""
    names: dict[str, set[str]] = {name: set()}
    for key, field in section.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)
        names[name].add(key)
        if inner is not None:
            names |= keys(inner, f"{name}.{key}".strip("."))
    return names


def below(value, path: list[str]) -> list[dict]:
    """The objects at a path of keys, through lists."""
    values = value if isinstance(value, list) else [value]
    return values if not path else [inner for value_of in values for inner in below(value_of[path[0]], path[1:])]


def assert_holds(present: dict[str, set[str]], promised: dict[str, str]) -> None:
    missing = {name: set(words.split()) - present.get(name, set()) for name, words in promised.items()}
    assert not {name: words for name, words in missing.items() if words}


def test_the_commands_and_their_options():
    options = commands(cli._parser())
    assert_holds(options, {name: f"{words} {EVERY_COMMAND}" for name, words in COMMANDS.items()})
    assert "bench" in options


def test_the_exit_codes():
    assert {name: getattr(errors, name).code for name in EXIT_CODES} == EXIT_CODES


def test_the_keys_of_the_configuration():
    assert_holds(keys(Config), KEYS)


def test_the_columns_of_the_tables():
    columns = {
        table.name: {f"{name}:{kind}" for name, kind in table.columns.items()} for table in tables.TABLES.values()
    }
    assert_holds(columns, COLUMNS)


def test_the_names_of_the_operators():
    import torch

    import emergence_kernels  # noqa: F401 - registers them

    assert set(OPERATORS.split()) <= set(dir(torch.ops.emergence_kernels))


def test_a_run_directory_and_its_rows(config_file, tmp_path):
    from emergence_train import config
    from emergence_train.tracking.points import view
    from emergence_train.training.run import train

    over = ["training.tokens=1024", "checkpoints.every_tokens=1024", "tasks=[{task: copying, items: 4}]"]
    over += ["samples={prompts: [The], tokens: 4}"]
    run = train(config.load(config_file, over), lambda line: None)
    assert {path for path in RUN_DIRECTORY if not (run / path).is_file()} == set()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert_holds({row["kind"]: set(row) for row in rows}, ROWS)
    assert_holds({row["kind"]: set(view(row, 1e-9) or ()) for row in rows}, TRACKED)


def analysed(capsys, *arguments: str) -> dict:
    """What `analyze ... --json` prints, which is what it writes to result.json."""
    assert cli.main(["analyze", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_result_of_analyze_temporal(tmp_path, capsys):
    steps = np.arange(100, 4001, 100)
    lines = [f"r,1000,{step},{step * 1000},0.001,{2 + 3 * step**-0.3:.6f}" for step in steps]
    path = tmp_path / "curve.csv"
    path.write_text("\n".join(["run,params,step,tokens,lr,loss", *lines]) + "\n")
    result = analysed(capsys, "temporal", str(path), "--fit-fraction", "0.5")
    for name, words in TEMPORAL.items():
        for part in below(result, name.split(".")):
            assert set(words.split()) <= set(part), name


def test_the_result_of_analyze_weights(tmp_path, capsys):
    result = analysed(capsys, "weights", *map(str, write_weights(tmp_path)))
    assert result["rows"]
    for row in below(result, ["rows"]):
        assert list(row) == WEIGHTS["rows"].split()


def test_the_result_of_analyze_emergence(tmp_path, capsys):
    from emergence_train.analysis.emergence import simulate

    frame = simulate.table("emergent", np.random.default_rng(1), sizes=3, checkpoints=8)[0]
    path = tmp_path / "evaluations.parquet"
    tables.write(tables.EVALUATIONS, frame, path, vocabulary="v")
    result = analysed(capsys, "emergence", str(path))
    for name, words in EMERGENCE.items():
        for part in below(result, name.split(".")):
            assert part is None or set(words.split()) <= set(part), name


def test_the_result_of_plan(capsys):
    assert (
        cli.main(["plan", str(ROOT / "configs" / "quickstart.yaml"), "--gpus", "1", "--gpu", "h100-80gb", "--json"])
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    for name, words in PLAN.items():
        for part in below(result, [word for word in name.split(".") if word]):
            assert set(words.split()) <= set(part), name


def test_the_keys_of_a_sweep():
    from emergence_train.grokking.sweep import Sweep

    assert_holds(keys(Sweep), GROK_SECTIONS)


def test_the_result_of_grok(tmp_path, capsys):
    path = tmp_path / "sweep.yaml"
    task = "{kind: modular, modulus: 5}"
    models = "{a: {kind: mlp, width: 16, hidden: 16}, b: {kind: mlp, width: 16, hidden: 24}}"
    training = "{updates: 40, evaluate_every: 20}"
    path.write_text(
        f"name: s\ntask: {task}\nmodels: {models}\nfractions: [0.4, 0.8]\nseeds: [1, 2]\ntraining: {training}\n"
    )
    assert cli.main(["grok", str(path), "--out", str(tmp_path / "out"), "--jobs", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "out" / "result.json").read_text())
    assert len(result["runs"]) == 8 and len(result["critical_fraction"]) == 2
    for name, words in GROK.items():
        for part in below(result, [word for word in name.split(".") if word]):
            assert set(words.split()) <= set(part), name
    files = {"runs.csv", "critical_fraction.csv", "times.csv", "curves.parquet", "report.html", "phase-diagram.svg"}
    assert files <= {path.name for path in (tmp_path / "out").iterdir()}
