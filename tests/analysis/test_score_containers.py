"""The same rows of scores give the same result whatever holds them, whatever is given beside them; what is none is refused."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emergence_train import cli
from emergence_train.analysis.emergence import investigate
from emergence_train.analysis.logs import FORMATS as LOGS
from emergence_train.analysis.results import as_json
from emergence_train.analysis.scores import FORMATS, ScoreOptions
from emergence_train.recorder.tables import EVALUATIONS

OPTIONAL = {
    "unigram_loss": [5.0, 5.0, 5.0],
    "majority": [0.9, 0.9, 0.9],
    "bits_per_byte": [1.0, 1.1, 1.2],
    "vocabulary": ["50257", "50257", "32000"],
    "data": ["c4", "c4", "pile"],
    "family": ["x", "x", "y"],
    "task_digest": ["0123456789abcdef"] * 3,
}
OPTIONS = {
    "none": {},
    "--format": {"format": "csv"},
    "--params": {"params": {"m-step1000": 100_000_000}},
    "--tokens-per-step": {"tokens_per_step": 10_000},
    "--column": {"columns": {"loss": "loss"}},
}


def scores(**columns: list) -> pd.DataFrame:
    """Three runs whose accuracy leaves its plateau at a loss of 4.4; the name of one has a step. Steps of 10,000 tokens."""
    rows = []
    for number, run in enumerate(("m-step1000", "b", "c")):
        for k in range(1, 21):
            loss = 7.5 - 0.25 * k
            value = round(0.25 + 0.7 / (1 + np.exp((loss - 4.25) / 0.125)) + 0.004 * np.sin(7 * k + number), 4)
            row = {"run": run, "params": 100_000_000 * 2**number, "step": 100 * k, "tokens": 1_000_000 * k}
            row |= {"loss": loss, "task": "arc_easy", "metric": "acc", "value": value, "stderr": 0.01, "items": 1000}
            rows.append(row | {name: values[number] for name, values in columns.items()})
    return pd.DataFrame(rows)


def as_parquet(frame: pd.DataFrame, path: Path, vocabulary: str = "") -> None:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(table.replace_schema_metadata({"vocabulary": vocabulary}), path)


def as_markdown(frame: pd.DataFrame, path: Path) -> None:
    rows = [frame.columns, ["---"] * frame.shape[1], *frame.to_numpy()]
    path.write_text("\n".join(f"| {' | '.join(map(str, row))} |" for row in rows))


CONTAINERS = {
    "x.csv": lambda frame, path: frame.to_csv(path, index=False),
    "x.csv.gz": lambda frame, path: frame.to_csv(path, index=False),
    "x.tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    "semicolons.csv": lambda frame, path: frame.to_csv(path, index=False, sep=";"),
    "x.parquet": as_parquet,
    "x.jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True, double_precision=15),
    "x.md": as_markdown,
}


def result(path: Path, **options) -> dict:
    """The content of result.json without the notes on the reading, which name the file."""
    content = as_json(investigate([path], options=ScoreOptions(**options)).result)
    return json.loads(json.dumps({name: value for name, value in content.items() if name != "notes"}))


GIVEN = [*([name] for name in OPTIONAL), [*OPTIONAL], [], ["num_fewshot"]]


@pytest.mark.parametrize("given", GIVEN, ids=lambda names: "+".join(names))
def test_result_is_the_same_in_every_container(given, tmp_path):
    columns = OPTIONAL | {"num_fewshot": [0, 0, 25]}
    frame = scores(**{name: columns[name] for name in given})
    CONTAINERS["x.csv"](frame, tmp_path / "ours.csv")
    wanted = result(tmp_path / "ours.csv")
    for name, write in CONTAINERS.items():
        write(frame, tmp_path / name)
        assert result(tmp_path / name) == wanted, name


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("container", ["x.csv", "x.parquet"])
def test_result_is_the_same_with_every_option(option, container, tmp_path):
    frame = scores(**OPTIONAL)
    CONTAINERS["x.csv"](frame, tmp_path / "ours.csv")
    CONTAINERS[container](frame, tmp_path / container)
    assert result(tmp_path / container, **OPTIONS[option]) == result(tmp_path / "ours.csv")


def test_columns_of_other_names_keep_the_optional_ones(tmp_path):
    frame = scores(**OPTIONAL).replace({"run": {"m-step1000": "a"}})  # others' names of models may say a step
    frame.to_csv(tmp_path / "ours.csv", index=False)
    frame.rename(columns={"run": "run_name", "task": "benchmark", "value": "score"}).to_csv(tmp_path / "theirs.csv")
    assert result(tmp_path / "theirs.csv") == result(tmp_path / "ours.csv")


def test_a_column_a_task_keeps_the_optional_ones(tmp_path):
    frame = scores(**OPTIONAL).replace({"run": {"m-step1000": "a"}}).drop(columns=["stderr", "items"])
    frame.to_csv(tmp_path / "ours.csv", index=False)
    wide = frame.drop(columns=["task", "metric"]).rename(columns={"value": "arc_easy/acc"})
    wide.to_csv(tmp_path / "wide.csv", index=False)
    assert result(tmp_path / "wide.csv") == result(tmp_path / "ours.csv")


def test_every_optional_column_is_tried_here():
    assert set(OPTIONAL) == set(dict(EVALUATIONS.extra))


def test_a_unigram_loss_decides_what_has_a_plateau(tmp_path):
    """Of losses 7.25, 7.0, ... 2.5 eleven are below 5.25, and so is the unigram model's in a compressed table."""
    CONTAINERS["x.csv.gz"](scores(unigram_loss=[5.25] * 3), tmp_path / "x.csv.gz")
    (task,) = result(tmp_path / "x.csv.gz")["tasks"]
    assert task["rows"] == 3 * 11


def test_unigram_losses_in_bits_are_converted(tmp_path):
    frame = scores().assign(**{"unigram_loss (bits)": 5.25 / np.log(2)})
    CONTAINERS["x.tsv"](frame, tmp_path / "x.tsv")
    (task,) = result(tmp_path / "x.tsv")["tasks"]
    assert task["rows"] == 3 * 11


def test_majority_in_percent_is_in_its_value_s_unit(tmp_path):
    frame = scores(majority=[0.3] * 3)
    CONTAINERS["x.tsv"](frame, tmp_path / "shares.tsv")
    signed = frame.assign(**{name: (100 * frame[name]).round(2).astype(str) + "%" for name in ("value", "majority")})
    CONTAINERS["x.tsv"](signed.assign(stderr="1%"), tmp_path / "signed.tsv")
    shares, percents = (result(tmp_path / f"{name}.tsv")["tasks"][0] for name in ("shares", "signed"))
    assert percents["verdict"] == shares["verdict"] and percents["probability"] == pytest.approx(shares["probability"])


def test_vocabularies_of_parquet_metadata_part_families(tmp_path):
    """Files of two tokenizers, which only their metadata name, read with an option."""
    frame = scores()
    for run, vocabulary in (("b", "v1"), ("c", "v2")):
        as_parquet(frame[frame["run"] == run], tmp_path / f"{run}.parquet", vocabulary)
    paths = [tmp_path / "b.parquet", tmp_path / "c.parquet"]
    families = investigate(paths, options=ScoreOptions(format="csv")).result.families
    assert [family.family for family in families] == ["v1", "v2"]


@pytest.mark.parametrize("name", ["vocabulary", "data", "family"])
def test_a_column_that_differs_within_a_run_parts_none(tmp_path, name):
    """A family of tasks: one run's rows were in two families."""
    other = scores().assign(task="piqa")
    frame = pd.concat([scores(**{name: ["reasoning"] * 3}), other.assign(**{name: "physical"})])
    frame = frame.rename(columns={"run": "model", "value": "score"})
    frame.to_csv(tmp_path / "x.csv", index=False)
    analysis = investigate([tmp_path / "x.csv"])
    assert len(analysis.result.families) == 1
    assert f"'{name}' is not taken for a {name} of runs, it differs within a run" in str(analysis.result)
    given = investigate([tmp_path / "x.csv"], options=ScoreOptions(columns={name: name})).result.families
    assert {part.family for part in given} == {"physical", "reasoning"}


def test_a_padded_vocabulary_names_its_remedy(tmp_path):
    frame = scores(vocabulary=["50257", "50304", "50257"]).rename(columns={"run": "model", "value": "score"})
    for columns, count in (({}, 2), ({"vocabulary": "padded"}, 1)):
        frame.rename(columns=columns).to_csv(tmp_path / "x.csv", index=False)
        result = investigate([tmp_path / "x.csv"]).result
        assert len(result.families) == count
        assert ("rename a column vocabulary that says something else" in str(result)) == (count == 2)


# ------------------------------------------------------------------------------------------------------------ refusals

WRONG = {
    "a.json": b'{"a": 1}',
    "list.json": b"[1, 2]",
    "plain.txt": b"hello\n",
    "empty.csv": b"",
    "header.csv": b"a,b\n",
    "x.csv": b"a,b\n1,2\n",
    "bytes.json": bytes(range(256)),
    "bytes.csv": bytes(range(256)),
    "cut.csv.gz": gzip.compress(b"a,b\n1,2\n" * 99)[:30],
    "damaged.parquet": b"PAR1xxx",
    "cut.jsonl": b'{"a": 1}\n{"b"',
    "lm-eval.json": b'{"results": {"t": {"acc,none": 1}}, "config": [1], "n-samples": [1]}',
    "lighteval.json": b'{"config_general": {"model_config": "x"}, "results": {"t|0": {"acc": 1}}}',
    "lists.json": b'{"config_general": [1], "results": [1]}',
    "olmes.jsonl": b'{"task_name": "t", "metrics": {"acc": 1}, "model_config": [1], "task_config": [1]}',
    "stats.json": b'[{"name": {"name": [1]}, "mean": "x"}]',
    "run_spec.json": b'{"adapter_spec": [1]}',
    "inside/x.txt": b"hello",
}
PLACES = [*WRONG, "inside", "nothing", "absent.csv"]


@pytest.fixture
def wrong(tmp_path, monkeypatch) -> Path:
    for name, content in WRONG.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "nothing").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, *arguments: str) -> str:
    """The line of an error of use."""
    assert cli.main([*arguments]) == 2, arguments
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize("format", ["auto", "evaluations", *FORMATS])
def test_a_wrong_format_of_scores_is_one_line(format, wrong, capsys):
    for place in PLACES:
        line = refused(capsys, "analyze", "emergence", place, "--format", format)
        assert "is a table of evaluations" not in line, (place, line)


@pytest.mark.parametrize("format", ["auto", "table", *LOGS])
def test_a_wrong_format_of_logs_is_one_line(format, wrong, capsys):
    for place in PLACES:
        refused(capsys, "analyze", "temporal", place, "--format", format)
        refused(capsys, "report", place, "--format", format, "--out", "page")
    assert not (wrong / "page" / "report.html").exists()


def test_remedies_of_a_wrong_format_pass(wrong, capsys):
    """A file of that format, another format, and what is left out of a table of ours."""
    CONTAINERS["x.parquet"](scores(), wrong / "ours.parquet")
    assert "holds no results of helm; name a file" in refused(
        capsys, "analyze", "emergence", "ours.parquet", "--format", "helm"
    )
    line = refused(capsys, "analyze", "emergence", "nothing", "--format", "lm-eval")
    assert "holds no task results that are known; name a file of results" in line
    given = ["analyze", "emergence", "ours.parquet", "--format", "evaluations"]
    assert "is a table of evaluations" in refused(capsys, *given, "--run", "r")
    assert "its JSON is not as lm-eval writes it" in refused(capsys, "analyze", "emergence", "lm-eval.json")
    assert "cannot be read as csv (" in refused(capsys, "analyze", "emergence", "cut.jsonl", "--format", "csv")
    for format in ("evaluations", "csv", "auto"):
        assert cli.main(["analyze", "emergence", "ours.parquet", "--format", format]) == 0


INDEXES = {
    "run": lambda frame: frame.set_index("run"),
    "several": lambda frame: frame.set_index(["run", "step", "task"]),
    "filtered": lambda frame: pd.concat([frame.head(1).assign(run="z"), frame])[lambda kept: kept["run"] != "z"],
    "unnamed": lambda frame: frame.set_index(frame["run"].rename(None)).drop(columns="run"),
    "category": lambda frame: frame.set_index(frame["run"].astype("category").rename(None)).drop(columns="run"),
}


@pytest.mark.parametrize("form", [None, "csv"])
@pytest.mark.parametrize("name", INDEXES)
def test_an_index_of_pandas_holds_columns(name, form, tmp_path):
    """Runs and steps that are an index of any kind; an unnamed one of text is of models."""
    frame = scores().replace({"run": {"m-step1000": "m"}})
    frame.to_parquet(tmp_path / "plain.parquet", index=False)
    INDEXES[name](frame).to_parquet(tmp_path / "x.parquet")
    options = ScoreOptions() if form is None else ScoreOptions(format=form)
    plain, indexed = (
        as_json(investigate([tmp_path / file], options=options).result) for file in ("plain.parquet", "x.parquet")
    )
    read = [
        [{key: task[key] for key in ("verdict", "rows", "runs", "loss_range")} for task in of["tasks"]]
        for of in (plain, indexed)
    ]
    assert read[0] == read[1] and indexed["families"] == plain["families"]
