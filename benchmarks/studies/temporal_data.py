"""Gather public loss curves as one table for the temporal benchmarks. The data are not kept in this repository.

    python benchmarks/studies/temporal_data.py --multi-power DIR --scheduling DIR --noisy FILE --out curves.parquet

--multi-power  loss_curve_repo/ of github.com/thu-yao-01-luo/MultiPowerLaw (MIT): csv_25, csv_100, csv_400 with
               step, lr, loss. 27 curves, three sizes, constant, cosine, two-stage and WSD schedules
--scheduling   data/ of github.com/fabian-sp/lr-scheduling (MIT): JSON logs of runs of 33M to 359M parameters on
               SlimPajama and OpenWebText2, cosine and WSD with many cooldowns; a cooldown is joined to its trunk run
--noisy        a CSV of one training loss a step (run, step, lr, loss), or left out

Columns: those of `curves` plus source, model (what one prior group must not be tested on), group (model and peak
rate) and schedule.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd


def multi_power(folder: Path) -> list[pd.DataFrame]:
    frames = []
    for file in sorted(folder.glob("csv_*/*.csv")):
        size = int(file.parent.name.split("_")[1])
        frame = pd.read_csv(file)
        frames.append(
            frame.assign(
                run=f"mpl-{size}-{file.stem}",
                params=size * 10**6,
                source="multi-power",
                model="multi-power",
                group=f"multi-power-{size}M",
                schedule=file.stem.split("_")[0],
                tokens=(frame["step"] * 128 * 4096).astype("int64"),  # batch from memory of the paper
            )
        )
    return frames


def scheduling(folder: Path) -> list[pd.DataFrame]:
    logs = {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("**/*.json"))}
    frames = []
    for name, log in logs.items():
        config, parts = log["config"], [log]
        if config.get("resume_from"):
            trunk = config["resume_from"].split("/exps/")[-1].split("/")[0]
            if trunk not in logs or logs[trunk]["config"].get("resume_from"):
                continue
            parts = [logs[trunk], log]
        steps, losses, lr_steps, rates = [], [], [], []
        for k, part in enumerate(parts):
            value, train = part["history"]["val"], part["history"]["train"]
            end = min(parts[1]["history"]["val"]["iter"], default=0) if len(parts) == 2 and k == 0 else np.inf
            keep = np.asarray(value["iter"]) < end
            steps.append(np.asarray(value["iter"])[keep])
            losses.append(np.asarray(value["val_loss"], float)[keep])
            keep = np.asarray(train["iter"]) <= end
            lr_steps.append(np.asarray(train["iter"])[keep])
            rates.append(np.asarray(train["train_lr"], float)[keep])
        step, first = np.unique(np.concatenate(steps), return_index=True)
        loss = np.concatenate(losses)[first]
        at, first = np.unique(np.concatenate(lr_steps), return_index=True)
        lr = np.interp(step, np.r_[0, at], np.r_[0, np.concatenate(rates)[first]])
        if len(step) < 20 or not np.all(np.isfinite(loss)) or np.diff(step).max() > 1000 or loss[-1] > 5:
            continue  # too short, torn, or diverged
        size = round(log["summary"].get("parameters", 0) / 1e6)
        step_tokens = int(config["batch_size"] * config["acc_steps"] * config["sequence_length"])
        frames.append(
            pd.DataFrame(
                dict(
                    run=name,
                    params=size * 10**6,
                    step=step,
                    tokens=step.astype("int64") * step_tokens,
                    lr=lr,
                    loss=loss,
                    source="scheduling",
                    model=f"scheduling-{size}M",
                    schedule=config["scheduler"],
                    group=f"{config['dataset']}-{size}M-{config['lr']}",
                )
            )
        )
    return frames


def noisy(file: Path) -> list[pd.DataFrame]:
    frame = pd.read_csv(file)
    return [frame.assign(params=10**8, tokens=0, source="noisy", model="noisy", group="noisy", schedule=frame["run"])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--multi-power", type=Path)
    parser.add_argument("--scheduling", type=Path)
    parser.add_argument("--noisy", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    frames = []
    for read in (multi_power, scheduling, noisy):
        path = getattr(arguments, read.__name__)
        frames += read(path) if path else []
    table = pd.concat(frames, ignore_index=True)
    table.to_parquet(arguments.out)
    print(table.groupby("run").first().groupby(["source", "schedule"]).size().to_string())


if __name__ == "__main__":
    main()
