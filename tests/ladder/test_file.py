"""The runs that a ladder's file stands for, and those of the papers, each checked by its plan."""

from pathlib import Path

import pytest

from emergence_train.errors import InputError
from emergence_train.ladder.file import read, row_config, shown_tokens
from emergence_train.planning.planner import plan_run
from support import ROOT

LADDERS = ROOT / "configs" / "ladders"
BILLION = 10**9
# arXiv 2403.15796, as in its table: size, budgets in billions, width, layers, heads, inner width, peak rate
LOSS_PAPER = {
    "300m": ([67, 125, 250, 500], 1152, 12, 9, 3840, 2.8e-3),
    "540m": ([33, 66, 125, 250, 500], 1536, 12, 12, 5120, 2e-3),
    "1b": ([33, 67, 125, 250, 500], 2048, 16, 16, 6912, 1.5e-3),
    "1.5b": ([67, 100, 125, 250, 375, 500], 2048, 24, 16, 6912, 1e-3),
    "3b": ([67, 125, 250, 500], 3072, 24, 24, 10240, 7e-4),
    "6b": ([33, 67, 125, 250], 4096, 28, 32, 13696, 4e-4),
}
STABLE = {"stable": {"set": {"training.schedule.kind": "constant"}}}
DECAY = {"decay": {"after": "stable", "share": 0.25, "set": {"training.schedule.kind": "wsd"}}}


def test_rows_are_sizes_by_budgets_by_seeds(ladder_file):
    sizes = {"a": {"set": {"model.width": 32}}, "b": {"tokens": [2048], "set": {"model.width": 64}}}
    ladder = read(ladder_file(sizes=sizes, tokens=[1024, 4096.0], seeds=[5, 6], set={"training.schedule.lr": 0.5}))
    names = ["a-1.024k-s5", "a-4.096k-s5", "a-1.024k-s6", "a-4.096k-s6", "b-s5", "b-s6"]
    assert [row.run for row in ladder.rows] == names
    config = row_config(ladder.config, ladder.rows[3].overrides)
    assert (config.name, config.seed, config.training.tokens, config.model.width) == (names[3], 6, 4096, 32)
    assert config.training.schedule.lr == 0.5 and config.run_directory == ladder.directory(names[3])
    assert [row.total_steps for row in ladder.rows] == [4, 16, 4, 16, 8, 8]


def test_decays_begin_from_saved_states_of_one_stable_run(ladder_file):
    """States every 4 steps of 256 tokens. A quarter of 16 steps is 4, of 24 steps 6: from step 12, and from 16 as 18 is none."""
    ladder = read(ladder_file(tokens=[4096, 6144], schedules=STABLE | DECAY))
    assert [row.run for row in ladder.rows] == ["a-stable", "a-4.096k-decay", "a-6.144k-decay"]
    stable, *decays = ladder.rows
    assert stable.parent is None and stable.tokens == 6144
    assert row_config(ladder.config, stable.overrides).checkpoints.save_state == "every"
    assert [(row.parent, row.parent_step) for row in decays] == [("a-stable", 12), ("a-stable", 16)]
    lengths = [row_config(ladder.config, row.overrides).training.schedule.decay_tokens for row in decays]
    assert lengths == [4 * 256, 8 * 256]
    assert ladder.arguments(decays[0])[-2:] == ["--from", f"{ladder.out}/a-stable@12"]


def test_a_size_may_have_some_of_the_schedules(ladder_file):
    sizes = {"a": {}, "b": {"schedules": ["stable"]}}
    ladder = read(ladder_file(tokens=[4096], schedules=STABLE | DECAY, sizes=sizes))
    assert [row.run for row in ladder.rows] == ["a-stable", "a-decay", "b-stable"]


@pytest.mark.parametrize(
    "tokens, shown",
    [(67 * BILLION, "67b"), (2_500 * BILLION, "2500b"), (409_600, "409.6k"), (12_345, "12.345k"), (999, "999")],
)
def test_names_have_the_exact_tokens(tokens, shown):
    assert shown_tokens(tokens) == shown
    units = {"b": BILLION, "m": 10**6, "k": 1000}
    assert round(float(shown.rstrip("bmk")) * units.get(shown[-1], 1)) == tokens


@pytest.mark.parametrize(
    ("keys", "key", "meant"),
    [
        ({"sizse": {"a": {}}, "sizes": None}, "sizse", "sizes"),
        ({"sizes": {"tiny": {"tokns": [1024]}}}, "sizes.tiny.tokns", "tokens"),
        ({"sizes": {"tokens": {"tokns": [1024]}}}, "sizes.tokens.tokns", "tokens"),
        ({"sizes": {0.05: {"tokns": [1024]}}}, "sizes.0.05.tokns", "tokens"),
        ({"sizes": {True: {"tokns": [1024]}}}, "sizes.1.tokns", "tokens"),
        ({"schedules": {"x": {"afterr": "y"}}}, "schedules.x.afterr", "after"),
        ({"slurm": {"optins": []}}, "slurm.optins", "options"),
    ],
)
def test_a_misspelt_key_has_the_right_one(ladder_file, keys, key, meant):
    with pytest.raises(InputError, match=f"ladder.yaml: {key}: unknown key; did you mean '{meant}'\\?$"):
        read(ladder_file(**keys))


@pytest.mark.parametrize("keys", [{"name": 7}, {"sizes": {"a": None}}, {"sizes": {"a": {"tokens": 5e6}}}])
def test_no_overrides_are_offered(ladder_file, keys):
    """`ladder` and `grok` take none."""
    with pytest.raises(InputError, match="see configs/ladders for examples$") as error:
        read(ladder_file(**keys))
    assert "command line" not in str(error.value) and "=" not in str(error.value)


def test_a_missing_key_is_named(ladder_file):
    with pytest.raises(InputError, match="ladder.yaml: sizes: is missing; see configs/ladders for examples$"):
        read(ladder_file(sizes=None))


def test_a_wrong_row_is_refused_before_the_first_starts(ladder_file):
    with pytest.raises(InputError, match="did you mean 'width'"):
        read(ladder_file(sizes={"a": {}, "b": {"set": {"model.widht": 8}}}))


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (
            {"config": "none.yaml"},
            r"ladder.yaml: config: no file .*none.yaml; give its path relative to the ladder's file",
        ),
        ({"set": {"training.thread": 1}}, r"ladder.yaml: set.training.thread: unknown key; did you mean 'threads'"),
        ({"sizes": {"a": {"set": {"model.preset": "x"}}}}, r"ladder.yaml: sizes.a.set.model.preset: unknown 'x'"),
        (
            {"schedules": {"s": {"set": {"training.schedule.lr": "fast"}}}},
            r": schedules.s.set.training.schedule.lr: .*fast",
        ),
        ({"set": {"model": {"width": 8}}}, r"ladder.yaml: a: .*: model.layers: is missing"),
        ({"set": {"seed": 3}}, r"set.seed is the ladder's to give; leave it out, seeds of the ladder says it"),
        ({"sizes": {"a": {"set": {"training.tokens": 3}}}}, r"sizes.a.set.training.tokens is the ladder's to give"),
        ({"schedules": {"s": {"set": {"out": "runs"}}}}, r"schedules.s.set.out is the ladder's to give"),
        ({"sizes": {"ladder-logs": {}}}, r"a run would be called ladder-logs, as the ladder's own; rename"),
        ({"sizes": {"ladder.json": {}}}, r"a run would be called ladder.json, as the ladder's own; rename"),
        ({"sizes": {"x" * 300: {}}}, r"a name of 300 characters is too long; shorten"),
        (
            {"tokens": [1024, 2048], "sizes": {"a": {}, "a-1.024k": {"tokens": [1024]}}},
            r"two runs are called a-1.024k; rename sizes.a or sizes.a-1.024k",
        ),
        ({"sizes": {"a": {}, "b": {}, "A": {}}}, r"sizes.a and A differ in case alone, .*; rename one"),
        ({"schedules": STABLE | {"Stable": {}}}, r"schedules.stable and Stable differ in case alone"),
        ({"seeds": [1, 1]}, r"two runs are called a-s1; list each of tokens and seeds once"),
        (
            {"tokens": [4096], "schedules": {"stable": {"set": {"training.schedule.kind": "cosine"}}} | DECAY},
            r"schedules.stable: kind cosine has lowered the rate where decays branch from it; give it .*: constant",
        ),
        ({"tokens": [True]}, r"tokens.0: True is no number of tokens; give one"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_mistake_is_named_where_the_ladder_has_it(ladder_file, keys, line):
    with pytest.raises(InputError, match=line) as failed:
        read(ladder_file(**keys))
    assert "\n" not in str(failed.value)


def test_an_out_of_several_directories_is_one_line(ladder_file, tmp_path):
    path = ladder_file(out=str(tmp_path / "seed-${seed}"), seeds=[1, 2])
    with pytest.raises(InputError, match=r"out is .*/seed-1 for a-s1 and .*/seed-2 for a-s2; give all runs one"):
        read(path)
    assert read(ladder_file(out=str(tmp_path / "seed-${seed}"))).out == tmp_path / "seed-1"


def test_a_list_as_a_key_is_one_line(tmp_path):
    (tmp_path / "ladder.yaml").write_text("name: t\nsizes: {[1]: 2}\n")
    with pytest.raises(InputError, match="a key is a list or a mapping"):
        read(tmp_path / "ladder.yaml")


def planned(path: Path):
    ladder = read(path)
    for row in ladder.rows:
        config = row_config(ladder.config, row.overrides)
        yield row, config, plan_run(config.training, config.model, config.data, row.gpus or 1, "h100-80gb")


RUNS = {"loss-paper": 28, "loss-paper-large": 3, "temporal-paper": 2, "tiny": 12, "muon": 24, "steps": 12, "story": 42}


@pytest.mark.parametrize("path", sorted(LADDERS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_row_of_a_ladder_fits_by_its_plan(path):
    rows = list(planned(path))
    assert len(rows) == RUNS[path.stem]
    for row, config, plan in rows:
        assert plan.fits, row.run
        assert plan.step_tokens * plan.steps >= row.tokens == config.training.tokens
        assert config.training.schedule.warmup_tokens <= row.tokens / 10


def test_rows_of_the_loss_paper_are_its_table():
    rows = list(planned(LADDERS / "loss-paper.yaml"))
    for size, (budgets, width, layers, heads, ffn, lr) in LOSS_PAPER.items():
        mine = [(row, config) for row, config, _ in rows if row.size == size]
        assert [row.tokens for row, _ in mine] == [budget * BILLION for budget in budgets]
        for _, config in mine:
            model, training = config.model, config.training
            assert (model.width, model.layers, model.heads, model.ffn) == (width, layers, heads, ffn)
            assert training.schedule.lr == lr and training.schedule.kind == "cosine"
            assert training.batch == 1152 and config.data.sequence == 2048 and model.rotary_fraction == 0.5
            assert len(config.tasks) >= 12


def test_rows_of_the_temporal_paper_are_its_setting():
    for row, config, plan in planned(LADDERS / "temporal-paper.yaml"):
        size = {"468m": 468e6, "1.2b": 1.2e9}[row.size]
        assert plan.parameters == pytest.approx(size, rel=0.02)
        assert config.training.tokens == 400 * BILLION and config.checkpoints.every_tokens == BILLION
        assert config.data.sequence == 1024 and config.data.ood[0].domain == "pg19"
