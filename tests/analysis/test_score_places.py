"""Run, step, tokens and size from the names that people give to models and their directories: two models are two runs."""

import json

import pytest

from emergence_train.analysis.scores import ScoreOptions, with_scores
from emergence_train.analysis.scores.options import place_of
from emergence_train.recorder import tables

NAMES = {  # a model's name or path: run, step, tokens, params
    "EleutherAI/pythia-70m-step1000": ("pythia-70m", 1000, None, 70e6),
    "allenai/OLMo-7B@step1000-tokens4B": ("OLMo-7B", 1000, 4e9, 7e9),
    "allenai/OLMo-2-1B/stage1-step1000-tokens3B": ("OLMo-2-1B", 1000, 3e9, 1e9),
    "EleutherAI/pythia-70m": ("pythia-70m", None, None, 70e6),
    "pythia-70m-step1000-deduped": ("pythia-70m-deduped", 1000, None, 70e6),
    "pythia-70m (step 1000)": ("pythia-70m", 1000, None, 70e6),
    "runs/m-70m/step1000": ("m-70m", 1000, None, 70e6),
    "/scratch/u/m-70m/checkpoint-1000/hf": ("m-70m", 1000, None, 70e6),
    "/scratch/u/m-70m/checkpoints/step1000": ("m-70m", 1000, None, 70e6),
    "/scratch/u/m-70m/checkpoints/global_step1000/": ("m-70m", 1000, None, 70e6),
    "m-70m/iter_0001000_hf": ("m-70m", 1000, None, 70e6),
    "m-70m/step1000-unsharded": ("m-70m", 1000, None, 70e6),
    "m-70m/epoch=1-step=1000.ckpt": ("m-70m", 1000, None, 70e6),
    "m-70m-step1000/hf": ("m-70m", 1000, None, 70e6),
    "amber/ckpt_100": ("amber", 100, None, None),
    "m-70m/step1k": ("m-70m", 1000, None, 70e6),
    "m-70m/step1.5k": ("m-70m", 1500, None, 70e6),
    "m-70m/step0.5K": ("m-70m", 500, None, 70e6),
    "m-70m/step_1M": ("m-70m", 1_000_000, None, 70e6),
    "TinyLlama-1.1B-step-50K-105b": ("TinyLlama-1.1B", 50_000, 105e9, 1.1e9),
    "TinyLlama-1.1B-intermediate-step-240k-503b": ("TinyLlama-1.1B-intermediate", 240_000, 503e9, 1.1e9),
    "m-step1000-1.4b": ("m-1.4b", 1000, None, 1.4e9),
    "m-70m(v2)": ("m-70m(v2)", None, None, 70e6),
    "m-step1000-70m": ("m-70m", 1000, None, 70e6),
    "m-ckpt5-tokens1.5B": ("m", 5, 1.5e9, None),
    "x/ckpt-410m": ("ckpt-410m", None, None, 410e6),
    "lab/checkpoint-1.4b": ("checkpoint-1.4b", None, None, 1.4e9),
    "llama-ckpt-7b/step1000": ("llama-ckpt-7b", 1000, None, 7e9),
    "step1000": (None, 1000, None, None),
    "hf": ("hf", None, None, None),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_says_run_step_tokens_and_size(name):
    assert tuple(place_of(name).values()) == NAMES[name]


def test_a_revision_says_the_step_of_the_model():
    assert place_of("EleutherAI/pythia-70m", "step3000")["run"] == "pythia-70m"
    assert place_of("EleutherAI/pythia-70m", "step3k")["step"] == 3000
    assert place_of("x/pythia-70m-step1000", "main")["step"] == 1000


def read(path, **options):
    known, notes = with_scores([path], ScoreOptions(**options))
    return tables.read(tables.EVALUATIONS, known, mixed_vocabularies=True), notes


MODELS = [
    "org/m-{size}-step{step}",
    "org/m-{size}@step{step}",
    "/scratch/m-{size}/step{step}/hf",
    "org/m-{size}/step{step}",
]


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_models_of_one_directory_are_runs_of_a_table(name, sized, tmp_path):
    lines = ["model,tokens,loss,piqa_acc" + ",params" * sized]
    for size, params in (("70m", "7e7"), ("160m", "1.6e8")):
        for step in ("1000", "2k"):
            lines.append(f"{name.format(size=size, step=step)},5,3.5,0.6" + f",{params}" * sized)
    (tmp_path / "x.csv").write_text("\n".join(lines) + "\n")
    frame, notes = read(tmp_path / "x.csv")
    rows = [
        ("m-160m", 1000, 160_000_000),
        ("m-160m", 2000, 160_000_000),
        ("m-70m", 1000, 70_000_000),
        ("m-70m", 2000, 70_000_000),
    ]
    assert sorted(zip(frame["run"], frame["step"], frame["params"])) == rows
    assert not any("come again" in note for note in notes)


def test_sizes_of_one_name_are_runs_of_their_own(tmp_path):
    """A table that names the family alone: of each step the last size alone counted."""
    rows = "".join(f"fam,{params},{step},5,3.5,0.6\n" for params in ("70M", "1.4B") for step in (1000, 2000))
    (tmp_path / "x.csv").write_text(f"model,params,step,tokens,loss,piqa_acc\n{rows}")
    frame, notes = read(tmp_path / "x.csv")
    assert len(frame) == 4 and set(zip(frame["run"], frame["params"])) == {("fam-70M", 7e7), ("fam-1.4B", 1.4e9)}
    assert "'fam' holds 2 sizes, a run each: fam-70M, fam-1.4B" in " ".join(notes)


@pytest.mark.parametrize(
    "model",
    [
        "org/m-{size}-step{step}",
        "/scratch/u/m-{size}/checkpoint-{step}/hf",
        "./current",
        "/scratch/job{step}{size}/out",
    ],
)
def test_models_of_lm_eval_are_runs(model, tmp_path):
    """Where the model says no step, the directory of its results says step and run."""
    for size in ("70m", "160m"):
        for step in (1000, 2000):
            path = tmp_path / "r" / f"m-{size}" / f"checkpoint-{step}" / "results.json"
            path.parent.mkdir(parents=True)
            arguments = f"pretrained={model.format(size=size, step=step)},dtype=float32"
            results = {"piqa": {"acc,none": 0.6, "acc_stderr,none": 0.01}}
            path.write_text(json.dumps({"results": results, "config": {"model_args": arguments}}))
    (tmp_path / "l.csv").write_text(
        "run,step,loss\n" + "".join(f"m-{s},{k},3\n" for s in ("70m", "160m") for k in (1, 9000))
    )
    frame, _ = read(tmp_path / "r", loss=str(tmp_path / "l.csv"), tokens_per_step=10, params={"m-70m": 5})
    assert sorted(zip(frame["run"], frame["step"], frame["params"])) == [
        ("m-160m", 1000, 160_000_000),
        ("m-160m", 2000, 160_000_000),
        ("m-70m", 1000, 5),
        ("m-70m", 2000, 5),
    ]


def test_models_in_a_steps_directory_keep_their_names(tmp_path):
    for size in ("70m", "160m"):
        path = tmp_path / "results" / "step1000" / f"{size}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"results": {"piqa": {"acc,none": 0.6}}, "config": {"model_args": f"pretrained=org/m-{size}"}}
        path.write_text(json.dumps(content))
    (tmp_path / "l.csv").write_text(
        "run,step,loss\n" + "".join(f"m-{s},{k},3\n" for s in ("70m", "160m") for k in (1, 9000))
    )
    frame, _ = read(tmp_path / "results", loss=str(tmp_path / "l.csv"), tokens_per_step=10)
    assert sorted(zip(frame["run"], frame["step"])) == [("m-160m", 1000), ("m-70m", 1000)]


@pytest.mark.parametrize("name", ["step1.5k.json", "step1500.json", "m_step1.5k.csv.json"])
def test_a_file_is_named_after_a_step_in_thousands(name, tmp_path):
    (tmp_path / "m-70m").mkdir()
    (tmp_path / "m-70m" / name).write_text(json.dumps({"piqa": {"acc": 0.6}}))
    (tmp_path / "l.csv").write_text("step,loss\n1,3\n9000,3\n")
    frame, _ = read(tmp_path / "m-70m", loss=str(tmp_path / "l.csv"), tokens_per_step=10, params={"": 5})
    assert frame["step"].tolist() == [1500]


def test_checkpoints_in_thousands_are_keys_of_json(tmp_path):
    content = {"step0.5k": {"piqa": {"acc": 0.6}}, "step1k": {"piqa": {"acc": 0.7}}}
    (tmp_path / "x.json").write_text(json.dumps(content))
    (tmp_path / "l.csv").write_text("step,loss\n1,3\n9000,3\n")
    frame, _ = read(tmp_path / "x.json", run="m", loss=str(tmp_path / "l.csv"), tokens_per_step=10, params={"": 5})
    assert frame["step"].tolist() == [500, 1000]
