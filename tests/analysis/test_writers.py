"""Logs as the source of each framework writes them: what stands in their format strings, with losses that are known.

Read in the repositories at the commits given; facts of the formats, none of their code.
"""

import json

import numpy as np
import pytest

from emergence_train.analysis import logs
from emergence_train.analysis.logs import LogOptions, format_of

STEPS = np.arange(10, 210, 10)
LOSSES = np.round(2 + 3 * STEPS**-0.3, 3)
RATES = np.round(np.linspace(1e-3, 1e-4, len(STEPS)), 6)
exactly = float


def torchtitan(step, loss, rate):
    """pytorch/torchtitan, torchtitan/components/metrics.py and tools/logging.py, b5bcd76: its validation has both too."""
    yield (
        f"[titan] 2026-08-21 10:00:00,123 - root - INFO - \x1b[31mstep: {step:2}  \x1b[32mloss: {loss:8.5f}  "
        f"\x1b[38;2;180;60;0mgrad_norm: {0.9:7.4f}  \x1b[36mmemory: {47.2:5.2f}GiB({59.6:.2f}%)  \x1b[34mtps: {round(5812.3):,}  "
        f"\x1b[36mtflops: {1310.4:,.2f}  \x1b[35mmfu: N/A\x1b[39m"
    )
    yield (
        f"[titan] 2026-08-21 10:00:00,123 - root - INFO - \x1b[33mvalidate step: {step:2}  \x1b[32mloss: {9.9:7.4f}  "
        f"\x1b[36mmemory: {47.2:5.2f}GiB({59.6:.2f}%)  \x1b[34mtps: {5812:,}\x1b[39m"
    )


def olmo_number(value: float) -> str:
    """The digits that OLMo's log_metrics_to_console leaves of a number."""
    digits = 1 if value > 100 else 2 if value > 10 else 3 if value > 1 else 4
    return str(value) if value < 0.0001 else f"{int(value):,d}" if value > 1000 else f"{value:.{digits}f}"


def olmo(step, loss, rate):
    """allenai/OLMo, olmo/train.py and olmo/util.py, 59a53e3: optimizer metrics but the norm stay out of the console."""
    metrics = {"optim/total_grad_norm": 0.51, "train/CrossEntropyLoss": loss, "train/Perplexity": float(np.exp(loss))}
    metrics |= {"throughput/total_tokens": step * 4096, "throughput/device/tokens_per_second": 5123.4}
    lines = "\n".join(f"    {name}={olmo_number(value)}" for name, value in metrics.items())
    yield f"2025-09-04 10:00:00.123\thost:0\tolmo.train:979\tINFO\t[step={step}/400,epoch=0]\n{lines}"
    yield "2025-09-04 10:00:01.123\thost:0\tolmo.train:979\tINFO\tPre-train system metrics\n    System/Peak GPU Memory (MB)=9,213"


def olmo_core(step, loss, rate):
    """allenai/OLMo-core, src/olmo_core/train/callbacks/console_logger.py, fa6c501."""
    yield f"2026-01-02 03:04:05.123\thost:0\tolmo_core.train:81\tINFO\t[step={step - 5}/400,epoch=1]"
    yield (
        f"2026-01-02 03:04:05.123\thost:0\tolmo_core.train:81\tINFO\t[step={step}/400,epoch=1,eta=1 day2 hours]\n"
        f"    optim/LR (group 0)={olmo_number(rate)}\n    optim/step skipped=0.0\n    optim/total grad norm=0.5123\n"
        f"    throughput/total tokens={step * 4096:,}\n    train/CE loss={loss:.3f}\n    train/Z loss=0.0012\n"
        f"    train/block 01/load imbalance=1.234"
    )


def megatron(step, loss, rate):
    """NVIDIA/Megatron-LM, megatron/training/training.py and arguments.py, d98e8a6, with a mixture's own loss."""
    if step == 10:
        yield "  seq_length ...................................... 2048"
        yield "  decoder_seq_length .............................. None"
    yield (
        f" [2026-08-21 10:00:00.123456] iteration {step:8d}/{400:8d} | consumed samples: {step * 2:12d} |"
        f" elapsed time per iteration (ms): {210.31:.1f} | throughput per GPU (TFLOP/s/GPU): {401.2:.1f} |"
        f" learning rate: {rate:.6E} | "
        f"global batch size: {2:5d} | lm loss: {loss:.6E} | load_balancing_loss: {1.01:.6E} | loss scale: {1.0:.1f} | "
        f"grad norm: {0.391:.3f} | num zeros: 12 | number of skipped iterations: {0:3d} | number of nan iterations: {0:3d} |"
    )
    yield f" validation loss at iteration {step} | lm loss value: {9.9:.6E} | lm loss PPL: {9.9:.6E} | "


def nemo(step, loss, rate):
    """NVIDIA/NeMo, nemo/lightning/pytorch/callbacks/progress_printer.py, 01f7dbc: the iteration begins anew in each epoch."""
    yield (
        f"Training epoch {step // 100}, iteration {step % 100}/399 | lr: {rate:.4g} | global_batch_size: 2 | global_step: {step}"
        f" | reduced_train_loss: {loss:.4g} | train_step_timing in s: 0.4357 | consumed_samples: {2 * step} | val_loss: 9.9"
    )


def litgpt(step, loss, rate):
    """Lightning-AI/litgpt, litgpt/pretrain.py, 2685705: four iterations a step, the last of which counts."""
    for k in range(4):
        yield (
            f"Epoch 1 | iter {4 * step - 3 + k} step {step} | loss train: {loss + 3 - k:.3f}, val: n/a | iter time: 512.23 ms"
            f"{' (step)' if k == 3 else ''} remaining time: 1 day, 2:03:04"
        )


def llm_c(step, loss, rate):
    """karpathy/llm.c, train_gpt2.cu, f1e2ace."""
    if step == 10:
        yield f"| total batch size      | {4096:<50d} |"
    yield (
        f"step {step:4d}/{400} | loss {loss:7.6f} ({1.2:+.2f}z)| norm {0.31:6.4f} ({-0.1:+.2f}z)| lr {rate:.5e}"
        f" | {302.1:.2f} ms | {49.5:.1f}% bf16 MFU | {171126:.0f} tok/s"
    )
    yield f"val loss {9.9:f}"


def llm_c_python(step, loss, rate):
    """karpathy/llm.c, train_gpt2.py, f1e2ace."""
    yield f"step {step:4d}/{400} | train loss {loss:.6f} | norm {0.31:.4f} | lr {rate:.5e} | ({302.1:.2f} ms | {17112:.0f} tok/s)"


def llm_c_main(step, loss, rate):
    """karpathy/llm.c, llmc/logger.h, f1e2ace: training, validation and HellaSwag."""
    yield f"s:{step} trl:{loss:.4f} lr:{rate:.6f} norm:{0.31:.2f}"
    yield f"s:{step} tel:{9.9:.4f}\ns:{step} eval:{0.3:.4f}"


def nanogpt(step, loss, rate):
    """karpathy/nanoGPT, train.py, 3adf61e."""
    if step == 10:
        yield f"tokens per iteration will be: {4096:,}"
    yield f"step {step}: train loss {9.9:.4f}, val loss {9.8:.4f}\nsaving checkpoint to out"
    yield f"iter {step}: loss {loss:.4f}, time {251.1:.2f}ms, mfu {17.25:.2f}%"


def nanochat(step, loss, rate):
    """karpathy/nanochat, scripts/base_train.py, 92d63d4."""
    if step == 10:
        yield f"Total batch size {4096:,} => gradient accumulation steps: 1"
    yield f"Step {step:05d} | Validation bpb: {9.9:.6f}"
    yield (
        f"step {step:05d}/{400:05d} ({step / 4:.2f}%) | loss: {loss:.6f} | lrm: {1000 * rate:.2f} | dt: {302.1:.2f}ms"
        f" | tok/sec: {171126:,} | bf16_mfu: {49.5:.2f} | epoch: 1 | total time: 1.00m | eta: 2.0m"
    )


def modded_nanogpt(step, loss, rate):
    """KellerJordan/modded-nanogpt, train_gpt.py, f411b3d: the log begins with the source of the script."""
    if step == 10:
        yield "for step in range(10):\n    loss = 0\n    lr = 0.3"
        yield '    print0(f"step:{step}/{train_steps} val_loss:{val_loss:.4f}")'
    yield f"step:{step}/400 train_time:{500 * step:.0f}ms step_avg:{500.1:.2f}ms"
    yield f"step:{step}/400 val_loss:{loss:.4f} train_time:{500 * step:.0f}ms step_avg:{500.1:.2f}ms"


def composer(step, loss, rate):
    """mosaicml/composer, composer/loggers/console_logger.py and logger.py, 6405188."""
    yield (
        f"[batch={step}/400]:\n\t Train time/batch: {step - 1}\n\t Train time/token: {(step - 1) * 4096}\n"
        f"\t Train loss/train/total: {loss:.4f}\n\t Train metrics/train/LanguageCrossEntropy: {loss:.4f}\n"
        f'\t Train trainer/device_train_microbatch_size: 4\n\t Train note: "text"'
    )
    yield "[Eval batch=1/8] Eval on eval data"
    yield f"[Eval batch=8/8] Eval on eval data:\n\t Eval metrics/eval/LanguageCrossEntropy: {9.9:.4f}"


def composer_file(step, loss, rate):
    """mosaicml/composer, composer/loggers/file_logger.py, 6405188: a line a metric, and what the console was shown."""
    metrics = {
        "time/batch": step - 1,
        "time/token": (step - 1) * 4096,
        "loss/train/total": loss,
        "lr-Adam/group0": rate,
    }
    for name, value in metrics.items():
        yield f"[metric][batch={step}]: {name}: {value if isinstance(value, int) else format(value, '.4f')} "
    yield f"[metric][batch={step}]: metrics/eval/LanguageCrossEntropy: {9.9:.4f} \n[hyperparameter]: seed: 17 "


def levanter(step, loss, rate):
    """stanford-crfm/levanter, src/levanter/tracker/json_logger.py, callbacks/_metrics.py and utils/logging.py, 9263f81."""
    prefix = "2026-01-02T03:04:05 - 0 - levanter.json_logger - json_logger.py:66 - INFO ::"
    for metrics in (
        {"optim/learning_rate": rate},
        {"train/loss": loss, "global_step": step, "run_progress": step / 400},
        {"throughput/total_tokens": step * 4096, "throughput/tokens_per_second": 5123.4, "throughput/mfu": 41.2},
    ):
        yield f"{prefix} {json.dumps({'tracker': 'json_logger', 'event': 'log', 'step': step, 'metrics': metrics})}"
    evaluated = {"eval/loss": 9.9, "eval/loading_time": 0.1}
    yield f"{prefix} {json.dumps({'tracker': 'json_logger', 'event': 'log', 'step': step, 'metrics': evaluated})}"


def gpt_neox(step, loss, rate):
    """EleutherAI/gpt-neox, megatron/logging.py, training.py and neox_arguments/arguments.py, ea7aefd: no samples."""
    if step == 10:
        for name, value in (("train_batch_size", 2), ("seq_length", 2048), ("train_iters", 400)):
            yield f"  {name} {'.' * (32 - len(name))} {value}{'.' * 25}updated"
    yield (
        f" samples/sec: {96.123:.3f} | iteration {step:8d}/{400:8d} | elapsed time per iteration (ms): {210.3:.1f} |"
        f" learning rate: {rate:.3E} | approx flops per GPU: 120.5TFLOPS | lm_loss: {loss:.6E} | loss scale: {1.0:.1f} |"
        f" number of skipped iterations: {0:3d} | number of nan iterations: {0:3d} |"
    )
    yield f" validation results at iteration {step} | lm_loss value: {9.9:.6E} | lm_loss_ppl value: {9.9:.6E} | "


# writer: (format, planned last step, tokens a step, the digits of its rate, None: it has none)
WRITERS = {
    torchtitan: ("text", None, 0, None),
    olmo: ("text", 400, 4096, None),
    olmo_core: ("text", 400, 4096, olmo_number),
    megatron: ("megatron", 400, 4096, exactly),
    nemo: ("text", 399, 0, exactly),
    litgpt: ("text", None, 0, None),
    llm_c: ("nanogpt", 400, 4096, exactly),
    llm_c_python: ("nanogpt", 400, 0, exactly),
    llm_c_main: ("nanogpt", None, 0, exactly),
    nanogpt: ("nanogpt", None, 4096, None),
    nanochat: ("nanogpt", 400, 4096, lambda rate: f"{1000 * rate:.2f}"),
    modded_nanogpt: ("text", 400, 0, None),
    composer: ("text", 400, 4096, None),
    composer_file: ("text", None, 4096, lambda rate: f"{rate:.4f}"),
    levanter: ("text", None, 4096, exactly),
    gpt_neox: ("megatron", 400, 4096, exactly),
}


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_log_of_a_framework_is_read(writer, tmp_path):
    path = tmp_path / "run.log"
    lines = [line for row in zip(STEPS.tolist(), LOSSES.tolist(), RATES.tolist()) for line in writer(*row)]
    path.write_text("\n".join(["starting on 8 devices", *lines, "done"]) + "\n")
    name, end, per_step, digits = WRITERS[writer]
    assert format_of(path) == name
    (curve,) = logs.read(path, LogOptions())
    before = writer in (composer, composer_file)  # its counters are of the batches before
    assert curve.frame["step"].tolist() == STEPS.tolist()
    assert curve.frame["loss"].tolist() == LOSSES.tolist()
    assert curve.frame["tokens"].tolist() == ((STEPS - before) * per_step).tolist()
    rates = [float(digits(rate)) if digits else np.nan for rate in RATES.tolist()]
    np.testing.assert_allclose(curve.frame["lr"], rates, rtol=1e-3)
    assert curve.log.end_step == end


def test_runs_that_were_appended_to_one_file_are_apart(tmp_path):
    """Each began anew after the planned end; a run that begins anew before it was restarted."""
    lines = [f"step:{step}/200 val_loss:{loss:.3f}" for step, loss in zip(STEPS, LOSSES)]
    (tmp_path / "x.log").write_text("\n".join([*lines, *lines, *lines[:5]]))
    curves = logs.read(tmp_path / "x.log", LogOptions())
    assert [(curve.run, len(curve.frame)) for curve in curves] == [("x-1", 20), ("x-2", 20), ("x-3", 5)]
    (tmp_path / "x.log").write_text("\n".join([*lines[:12], *lines]))
    (curve,) = logs.read(tmp_path / "x.log", LogOptions())
    assert curve.frame["step"].tolist() == STEPS.tolist()


def test_a_log_behind_a_long_beginning_is_found(tmp_path):
    """modded-nanogpt writes 100 kB of source before its first step."""
    (tmp_path / "x.txt").write_text(
        "import os\n" * 30_000 + "\n".join(line for row in zip(STEPS, LOSSES, RATES) for line in nanogpt(*row))
    )
    (curve,) = logs.read(tmp_path / "x.txt", LogOptions())
    assert curve.frame["loss"].tolist() == LOSSES.tolist()
