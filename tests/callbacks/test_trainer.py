"""PositionCallback for transformers' Trainer: sums equal to a loop by hand over the same batches, and a run resumed."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from emergence_kernels import patch_llama
from emergence_train.recorder import tables
from support import metrics, run_python

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

SEQUENCE, VOCABULARY = 12, 32


class Recording(torch.utils.data.Dataset):
    def __init__(self, rows, seed):
        generator = torch.Generator().manual_seed(seed)
        self.rows = torch.randint(0, VOCABULARY, (rows, SEQUENCE + 1), generator=generator)
        self.labels = self.rows.clone()
        self.labels[:, :3] = -100

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"input_ids": self.rows[index], "labels": self.labels[index]}


class Padded(Recording):
    """Rows of 5 to 13 tokens, padded on the right."""

    def __getitem__(self, index):
        mask = torch.arange(SEQUENCE + 1) < 5 + index % 9
        return {
            "input_ids": self.rows[index],
            "labels": self.rows[index].where(mask, -100),
            "attention_mask": mask.long(),
        }

    def lengths(self):
        return [5 + index % 9 for index in range(len(self))]


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
    )
    return transformers.LlamaForCausalLM(config)


def trainer(folder, steps, accumulation=2, model=None, callbacks=(), rows=Recording, **options):
    from emergence_train.callbacks.trainer import PositionCallback

    defaults = {"logging_steps": 2, "save_steps": 4, "eval_steps": 2, "eval_strategy": "steps", "learning_rate": 0.01}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        gradient_accumulation_steps=accumulation,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=1,
        **defaults | options,
    )
    return transformers.Trainer(
        model=model or llama(),
        args=arguments,
        train_dataset=rows(64, 1),
        eval_dataset=Recording(8, 2),
        callbacks=[PositionCallback(folder / "mine", sequence=SEQUENCE), *callbacks],
    )


def sums(model, rows, labels):
    with torch.no_grad():
        logits = model(input_ids=rows).logits.double()
    losses = -logits[:, :-1].log_softmax(-1).gather(-1, rows[:, 1:, None])[..., 0]
    return losses.where(labels[:, 1:] >= 0, 0.0).sum(0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trainer")
    running = trainer(folder, 8)
    seen = []
    watching = running.model.register_forward_pre_hook(
        lambda model, args, kwargs: seen.append((kwargs["input_ids"], kwargs["labels"], model.training)),
        with_kwargs=True,
    )
    running.train()
    watching.remove()
    return folder, running, seen


def test_sums_are_those_of_a_loop(finished):
    folder, running, _ = finished
    frame = tables.read(tables.POSITIONS, folder / "mine")
    assert sorted(frame["step"].unique()) == [2, 4, 6, 8] and set(frame["split"]) == {"train", "iid"}
    last = frame[(frame["step"] == 8) & (frame["split"] == "iid")]
    held_out = running.eval_dataset
    running.model.eval()
    expected = sums(running.model, held_out.rows, held_out.labels)
    assert last["position"].tolist() == list(range(3, SEQUENCE + 1)) and (last["count"] == 8).all()
    np.testing.assert_allclose(last["loss_sum"], expected[2:], rtol=1e-5)


def test_the_first_steps_sums_are_of_what_was_trained_on(finished):
    folder, _, seen = finished
    rows, labels, _ = next(batch for batch in seen if batch[2])
    frame = tables.read(tables.POSITIONS, folder / "mine")
    train = frame[(frame["step"] == 2) & (frame["split"] == "train")]
    assert (train["count"] == 8).all() and train["tokens"].unique() == [8 * (SEQUENCE + 1)]
    first = sums(llama().train(), rows, labels)  # dropout is 0
    assert (train["loss_sum"].to_numpy() > first[2:].numpy()).all()
    curve = tables.read(tables.CURVES, folder / "mine")
    assert curve["step"].tolist() == [2, 4, 6, 8] and (curve["lr"] > 0).all()
    by_step = frame[frame["split"] == "train"].groupby("step")
    means = by_step["loss_sum"].sum() / by_step["count"].sum()
    np.testing.assert_allclose(
        curve["loss"], means, atol=2e-4
    )  # Trainer's own mean over the same steps, to four digits


def test_a_model_on_our_kernels_records_the_same(finished, tmp_path):
    """Trained without logits: the same losses by position, of its fused loss."""
    trainer(tmp_path, 4, model=patch_llama(llama())).train()
    ours, expected = (tables.read(tables.POSITIONS, folder / "mine") for folder in (tmp_path, finished[0]))
    expected = expected[expected["step"] == 2].reset_index(drop=True)  # later ones have another learning rate
    ours = ours[ours["step"] == 2].reset_index(drop=True)
    assert ours["split"].tolist() == expected["split"].tolist() and (ours["count"] == expected["count"]).all()
    np.testing.assert_allclose(ours["loss_sum"], expected["loss_sum"], rtol=2e-3)
    assert ours.loc[ours["split"] == "train", "correct"].isna().all()
    assert not ours.loc[ours["split"] == "iid", "correct"].isna().any()


def test_a_resumed_training_continues_the_run(finished, tmp_path):
    folder = tmp_path / "resumed"  # a longer plan has other rates: the finished run stays as it is
    shutil.copytree(finished[0], folder)
    before = metrics(folder / "mine")
    again = trainer(folder, 12)
    again.train(resume_from_checkpoint=str(folder / "trainer" / "checkpoint-4"))
    rows = metrics(folder / "mine")
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12] and rows[:2] == before[:2]
    tokens = [row["tokens"] for row in rows]
    assert tokens == [8 * (SEQUENCE + 1) * k for k in range(1, 7)]


def test_tokens_continue_from_the_checkpoint(tmp_path):
    """Logged and saved at different steps: the last row is of step 10, training resumes at 12."""
    every = {"accumulation": 1, "logging_steps": 5, "save_steps": 6, "eval_strategy": "no"}
    trainer(tmp_path, 12, **every).train()
    trainer(tmp_path, 18, **every).train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-12"))
    frame = tables.read(tables.POSITIONS, tmp_path / "mine")
    each = 2 * (SEQUENCE + 1)
    assert frame.groupby("step")["tokens"].first().to_dict() == {6: 6 * each, 12: 12 * each, 18: 18 * each}
    curve = tables.read(tables.CURVES, tmp_path / "mine")
    assert curve["tokens"].tolist() == (curve["step"] * each).tolist() and curve["step"].tolist()[:3] == [5, 10, 15]


def test_evaluations_before_a_step_are_of_no_tables(finished, tmp_path):
    """At the start, of the untrained model or of the one resumed: they would be in the mean of the next."""
    trainer(tmp_path, 4, eval_on_start=True).train()
    trainer(tmp_path, 8, eval_on_start=True).train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-4"))
    frame = tables.read(tables.POSITIONS, tmp_path / "mine")
    assert frame["step"].unique().tolist() == [2, 4, 6, 8]
    assert (frame.loc[frame["split"] == "iid", "count"] == 8).all()


def test_each_data_set_is_a_split(tmp_path):
    """Of a dictionary by its keys; what is evaluated or predicted on beside it is in none of them."""
    running = trainer(tmp_path, 4)
    few, books = Recording(4, 3), Recording(6, 4)
    running.eval_dataset = {"iid": few, "train": books}

    class Aside(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                running.evaluate(few, metric_key_prefix="eval_few")
            if state.global_step == 3:
                running.predict(books)
                with pytest.warns(UserWarning, match="step 3 is evaluated twice as the split iid"):
                    running.evaluate(few)
                    running.evaluate(books)

    running.add_callback(Aside())
    running.train()
    frame = tables.read(tables.POSITIONS, tmp_path / "mine")
    counts = frame[frame["split"] != "train"].groupby(["step", "split"])["count"].first().to_dict()
    expected = {(1, "few"): 4, (3, "iid"): 4}
    for step in (2, 4):
        expected |= {(step, "iid"): 4, (step, "eval_train"): 6}
    assert counts == expected


@pytest.mark.parametrize("save", ["steps", "epoch"])
def test_epochs_evaluations_belong_to_their_own_steps(tmp_path, save):
    """Trainer saves by steps before, and by epochs after, it evaluates the epoch: 16 steps of 2 x 2 rows."""
    options = {"eval_strategy": "epoch", "save_strategy": save, "save_steps": 16, "num_train_epochs": 2}
    trainer(tmp_path, 32, **options).train()
    table = tables.read(tables.POSITIONS, tmp_path / "mine")
    assert sorted(set(zip(table["step"], table["split"]))) == [
        (step, split) for step in (16, 32) for split in ("iid", "train")
    ]


@pytest.mark.parametrize("save", ["steps", "epoch"])
def test_a_run_killed_after_a_save_resumes(tmp_path, save):
    """What is on the disk when step 16 is saved: its tables hold what was trained on; the rest is as if not killed."""
    options = {
        "eval_strategy": "epoch",
        "save_strategy": save,
        "save_steps": 8,
        "num_train_epochs": 2,
        "logging_steps": 1,
    }

    class Kill(transformers.TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 16:
                shutil.copytree(tmp_path / "whole", tmp_path / "killed")

    trainer(tmp_path / "whole", 32, callbacks=[Kill()], **options).train()
    trainer(tmp_path / "killed", 32, **options).train(resume_from_checkpoint=True)
    whole, resumed = (tables.read(tables.POSITIONS, tmp_path / name / "mine") for name in ("whole", "killed"))
    if save == "steps":  # it had not been evaluated, and Trainer does not do so later
        whole = whole[(whole["step"] != 16) | (whole["split"] != "iid")].reset_index(drop=True)
    pd.testing.assert_frame_equal(whole, resumed)
    whole, resumed = (
        [(row["step"], row["tokens"], row["loss"]) for row in metrics(tmp_path / name / "mine")]
        for name in ("whole", "killed")
    )
    assert whole == resumed and [row[0] for row in whole] == list(range(1, 33))


def test_rates_are_known_before_the_first_log(tmp_path):
    """Saved at 4 and 8, never logged: the curve's rates are the optimizer's, of a linear decay to 0."""
    trainer(tmp_path, 8, 1, logging_steps=500, eval_strategy="no").train()
    curve = tables.read(tables.CURVES, tmp_path / "mine")
    assert curve["step"].tolist() == [4, 8] and curve["lr"].tolist() == pytest.approx([0.005, 0.0])


@pytest.mark.parametrize("logged", ["steps", "epoch"])
def test_padding_is_no_token(logged, tmp_path):
    """An epoch of 32 batches: its rows' own lengths, in the curve and in the tables."""
    trainer(
        tmp_path, 32, 1, rows=Padded, logging_steps=8, logging_strategy=logged, eval_strategy="no", save_steps=32
    ).train()
    tokens = sum(Padded(64, 1).lengths())
    assert tables.read(tables.CURVES, tmp_path / "mine")["tokens"].iloc[-1] == tokens
    assert tables.read(tables.POSITIONS, tmp_path / "mine")["tokens"].unique() == [tokens]


def test_a_log_of_the_scripts_own_has_its_steps_tokens(tmp_path):
    """At a step that Trainer itself does not log, on one process: no other's batches are guessed."""

    class Logs(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step in (3, 5):
                running.log({"loss": 1.0})

    running = trainer(tmp_path, 8, 1, callbacks=[Logs()], logging_steps=4, eval_strategy="no")
    running.train()
    each = 2 * (SEQUENCE + 1)
    assert [(row["step"], row["tokens"]) for row in metrics(tmp_path / "mine")] == [(k, k * each) for k in (3, 4, 5, 8)]


@pytest.mark.slow
def test_two_processes_count_batches_of_their_own_sizes(tmp_path):
    two = run_python("tests/callbacks/test_trainer.py", str(tmp_path), "padded", processes=2)
    assert two.returncode == 0, two.stderr
    curve = tables.read(tables.CURVES, tmp_path / "mine")
    assert curve["tokens"].iloc[-1] == sum(Padded(64, 1).lengths()) and curve["tokens"].is_monotonic_increasing


@pytest.mark.slow
def test_two_processes_record_what_one_does(finished, tmp_path):
    folder, _, _ = finished
    two = run_python("tests/callbacks/test_trainer.py", str(tmp_path), processes=2)
    assert two.returncode == 0, two.stderr
    frames = [tables.read(tables.POSITIONS, of / "mine") for of in (folder, tmp_path)]
    single, both = (of[of["split"] == "iid"].reset_index() for of in frames)
    assert (both["count"] == 8).all() and both["step"].tolist() == single["step"].tolist()
    np.testing.assert_allclose(both["loss_sum"], single["loss_sum"], rtol=1e-6)
    train = frames[1][(frames[1]["split"] == "train") & (frames[1]["step"] == 2)]
    assert (train["count"] == 8).all() and train["tokens"].unique() == [8 * (SEQUENCE + 1)]


def test_a_model_that_hides_its_labels_is_refused(tmp_path):
    from emergence_train.errors import InputError

    running = trainer(tmp_path, 1)
    running.compute_loss_func = lambda outputs, labels, **of: outputs.logits.mean()
    with pytest.raises(InputError, match="called without labels"):
        running.train()
    running = trainer(tmp_path / "evaluated", 2)
    running.eval_dataset = [{"input_ids": row} for row in Recording(4, 2).rows]
    with pytest.raises(InputError, match="called without labels"):
        running.train()


class Probe(transformers.TrainerCallback):
    """What scripts call the model for beside Trainer: none of it is trained or evaluated on."""

    def probe(self, model):
        tokens = torch.arange(24).view(2, 12)
        with torch.no_grad():
            model(input_ids=tokens, labels=tokens)
            model(input_ids=tokens)
        model.generate(tokens, max_new_tokens=2, do_sample=False)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.probe(model)
        self.probe(model.eval())
        model.train()

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        self.probe(model)


@pytest.mark.filterwarnings("ignore")
def test_what_is_called_beside_trainer_is_of_no_split(tmp_path):
    """Saved between evaluations: the tables are those of a run without."""
    options = {"eval_steps": 4, "save_steps": 2, "logging_steps": 1}
    for name, callbacks in (("plain", []), ("probed", [Probe()])):
        trainer(tmp_path / name, 4, callbacks=callbacks, **options).train()
    plain, probed = (tmp_path / name / "mine" for name in ("plain", "probed"))
    assert set(tables.read(tables.POSITIONS, plain)["split"]) == {"train", "iid"}
    pd.testing.assert_frame_equal(*(tables.read(tables.POSITIONS, run) for run in (plain, probed)))
    rows = [[(row["step"], row["tokens"], row["loss"]) for row in metrics(run)] for run in (plain, probed)]
    assert rows[0] == rows[1]


def test_a_scripts_own_evaluation_loop_is_of_no_split(tmp_path):
    """It ends without an event that names what was evaluated."""

    class Loop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            running.evaluation_loop(running.get_eval_dataloader(Recording(6, 5)), "own")

    running = trainer(tmp_path, 4, callbacks=[Loop()], eval_strategy="no", save_steps=2)
    running.train()
    assert set(tables.read(tables.POSITIONS, tmp_path / "mine")["split"]) == {"train"}


if __name__ == "__main__":  # a rank: half the rows of each step
    if sys.argv[2:] == ["padded"]:
        trainer(Path(sys.argv[1]), 16, 1, rows=Padded, logging_steps=1, eval_strategy="no", save_steps=16).train()
    else:
        trainer(Path(sys.argv[1]), 8, accumulation=1).train()
