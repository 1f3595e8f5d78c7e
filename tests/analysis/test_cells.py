"""Tables with a header line in every hand: the same numbers come out, for logs and for results of tasks."""

import bz2
import gzip
import json
import lzma

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from emergence_train.analysis import logs
from emergence_train.analysis.logs import LogOptions
from emergence_train.analysis.logs.cells import header_of, read_table
from emergence_train.analysis.logs.numbers import numbers_of
from emergence_train.analysis.runs import load
from emergence_train.analysis.scores import ScoreOptions, holds_scores, with_scores
from emergence_train.errors import InputError
from emergence_train.recorder import tables

STEPS, LOSSES = [1000, 2000, 14000], [3.25, 3.125, 2.5]
HEAD = "model,params,step,tokens,loss,task,accuracy,stderr"
ROWS = [f"m-70m,70M,{s},{s * 1000},{x},piqa,{0.5 + 1 / s},0.01" for s, x in zip(STEPS, LOSSES)]
TABLE = "\n".join([HEAD, *ROWS]) + "\n"
# As a spreadsheet with decimal commas saves it
EUROPEAN = "\n".join(
    [
        HEAD.replace(",", ";"),
        *(
            f"m-70m;70M;{s:,};{s * 1000:,};{x};piqa;{0.5 + 1 / s};0.01".replace(".", "x")
            .replace(",", ".")
            .replace("x", ",")
            for s, x in zip(STEPS, LOSSES)
        ),
    ]
)


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


def quoted_thousands() -> str:
    return "\n".join(
        [HEAD, *(row.replace(f",{s},{s * 1000},", f',"{s:,}","{s * 1000:,}",') for s, row in zip(STEPS, ROWS))]
    )


HANDS = {
    "plain.csv": TABLE.encode(),
    "mark.csv": TABLE.encode("utf-8-sig"),
    "wide.csv": TABLE.encode("utf-16"),
    "wide_without_mark.csv": TABLE.encode("utf-16-be"),
    "old.csv": TABLE.replace("m-70m", "modèle-70m").encode("cp1252"),
    "t.csv.gz": gzip.compress(TABLE.encode()),
    "t.csv.bz2": bz2.compress(TABLE.encode()),
    "t.csv.xz": lzma.compress(TABLE.encode()),
    "t.csv.zst": zstd(TABLE.encode()),
    "no_name_of_it.csv": gzip.compress(TABLE.encode()),
    "UPPER.CSV": TABLE.replace("\n", "\r\n").encode(),
    "tabs.tsv": TABLE.replace(",", "\t").encode(),
    "tabs.csv": TABLE.replace(",", "\t").encode(),
    "bars.csv": TABLE.replace(",", "|").encode(),
    "spaced.csv": TABLE.replace(",", ", ").encode(),
    "excel.csv": ("sep=;\r\n" + TABLE.replace(",", ";")).encode(),
    "comment.csv": ("# exported on Monday, by hand\n\n" + TABLE).encode(),
    "european.csv": EUROPEAN.encode(),
    "european.csv.gz": gzip.compress(EUROPEAN.encode("utf-16")),
    "thousands.csv": quoted_thousands().encode(),
    "apostrophes.csv": quoted_thousands().replace('"', "").replace(",000", "'000").encode(),
    "trailing.csv": TABLE.replace("\n", ",\n").encode(),
}


@pytest.mark.parametrize("name", HANDS)
def test_a_table_of_scores_is_read_in_any_hand(name, tmp_path):
    (tmp_path / name).write_bytes(HANDS[name])
    assert holds_scores(tmp_path / name)
    known, _ = with_scores([tmp_path / name], ScoreOptions())
    frame = tables.read(tables.EVALUATIONS, known)
    assert frame["step"].tolist() == STEPS and frame["loss"].tolist() == LOSSES
    assert frame["tokens"].tolist() == [1000 * step for step in STEPS] and set(frame["params"]) == {70_000_000}
    assert frame["value"].tolist() == [0.5 + 1 / step for step in STEPS] and set(frame["stderr"]) == {0.01}


@pytest.mark.parametrize("name", HANDS)
def test_a_log_is_read_in_any_hand(name, tmp_path):
    (tmp_path / name).write_bytes(HANDS[name])
    (curve,) = logs.read(tmp_path / name, LogOptions())
    assert curve.frame["step"].tolist() == STEPS and curve.frame["loss"].tolist() == LOSSES
    assert curve.frame["tokens"].tolist() == [1000 * step for step in STEPS]


def test_our_own_table_is_read_in_any_hand(tmp_path):
    """Compressed, or with semicolons: all its columns, those that no other program has among them."""
    columns = [*tables.EVALUATIONS.columns]
    row = dict.fromkeys(columns, 1) | {"run": "007", "task": "t", "metric": "brier", "higher_is_better": False}
    plain = pd.DataFrame([row | {"step": step} for step in STEPS])
    plain.to_csv(tmp_path / "a.csv", index=False)
    plain.to_csv(tmp_path / "b.csv", index=False, sep=";")
    (tmp_path / "c.csv.xz").write_bytes(lzma.compress((tmp_path / "a.csv").read_bytes()))
    frames = []
    for name in ("a.csv", "b.csv", "c.csv.xz"):
        known, _ = with_scores([tmp_path / name], ScoreOptions())
        frames.append(tables.read(tables.EVALUATIONS, known)[columns])
    for other in frames[1:]:
        pd.testing.assert_frame_equal(frames[0], other, check_dtype=False)


def cells(tmp_path, text: str) -> dict[str, list]:
    (tmp_path / "x.csv").write_text(text, newline="")
    frame = read_table(tmp_path / "x.csv")
    return {str(name): frame[name].tolist() for name in frame}


def test_commas_are_decimal_where_they_must_be(tmp_path):
    """Three digits behind the only comma: in a loss decimals, in a count thousands; text is not touched."""
    assert cells(tmp_path, 'step,loss\n"1,000","3,125"\n"2,000","3,062"\n') == {
        "step": ["1,000", "2,000"],
        "loss": ["3.125", "3.062"],
    }
    assert cells(tmp_path, 'step;acc;note\n1.000;0,351;"a, b"\n12.000;0,4;1,5 or so\n') == {
        "step": ["1000", "12000"],
        "acc": ["0.351", "0.4"],
        "note": ["a, b", "1,5 or so"],
    }
    assert cells(tmp_path, "tokens;loss\n1.234.567;1.234,5\n2.234.567;NaN\n")["loss"] == ["1234.5", "NaN"]
    assert cells(tmp_path, 'tokens,loss\n"1,234.5","3.5"\n"2,234,567","3"\n')["tokens"] == ["1,234.5", "2,234,567"]
    assert cells(tmp_path, "step\tloss\n1 000\t3,5e-1\n2\u00a0000\t,25\n") == {
        "step": ["1000", "2000"],
        "loss": ["3.5e-1", ".25"],
    }


@pytest.mark.parametrize("other", ['"0,1"', '"4,8"', '"0,5"'])
def test_a_list_beside_points_leaves_them(other, tmp_path):
    """A column of GPUs is no sign of decimal commas: the points of a loss, an accuracy and a count stay."""
    for sep in (",", ";"):
        text = f"step,loss,hellaswag,tokens,gpus\n1,3.990,0.300,1.250,{other}\n2,3.980,0.310,2.500,{other}\n"
        read = cells(tmp_path, text.replace(other, "@").replace(",", sep).replace("@", other))
        assert read["loss"] == ["3.990", "3.980"] and read["hellaswag"] == ["0.300", "0.310"]
        assert read["tokens"] == ["1.250", "2.500"]


def test_a_loss_that_is_called_a_step_has_decimals(tmp_path):
    read = cells(tmp_path, "step;train_loss_step;lr\n10;3,241;0,0003\n20;3,102;0,0002\n")
    assert read == {"step": ["10", "20"], "train_loss_step": ["3.241", "3.102"], "lr": ["0.0003", "0.0002"]}


@pytest.mark.parametrize("sep", [",", ";", "\t"])
def test_a_count_in_billions_has_decimals(sep, tmp_path):
    rows = [["Tokens (B)", "loss"], ['"1,250"', '"3,99"'], ['"2,500"', '"3,81"']]
    assert cells(tmp_path, "\n".join(map(sep.join, rows)))["Tokens (B)"] == ["1.250", "2.500"]
    rows = [["Params (M)", "loss"], ['"1,300"', "3.99"], ['"2,500"', "3.81"]]  # thousands, beside points
    assert cells(tmp_path, "\n".join(map(sep.join, rows)))["Params (M)"] == ["1,300", "2,500"]


@pytest.mark.parametrize("sep", [";", "\t"])
def test_a_loss_of_no_decimals_changes_no_other(sep, tmp_path):
    rows = [["step", "loss"], ["1.000", "3,251"], ["2.000", "3"]]
    assert cells(tmp_path, "\n".join(map(sep.join, rows))) == {"step": ["1000", "2000"], "loss": ["3.251", "3"]}


@pytest.mark.parametrize("sep", [";", "\t"])
def test_one_decimal_comma_makes_all_decimal(sep, tmp_path):
    rows = [["seen_tokens", "loss"], ["1,250", "3,99"], ["2,500", "3,81"]]
    assert cells(tmp_path, "\n".join(map(sep.join, rows)))["seen_tokens"] == ["1.250", "2.500"]
    assert cells(tmp_path, "\n".join(map(sep.join, rows)).replace("3,", "3."))["seen_tokens"] == ["1,250", "2,500"]


def test_a_header_that_is_a_comment_is_the_header(tmp_path):
    """As numpy.savetxt writes it."""
    assert cells(tmp_path, "# a run\n# step,loss\n10,3.5\n") == {"step": ["10"], "loss": ["3.5"]}


def test_more_cells_than_names_are_refused(tmp_path):
    """10,3,25 is a loss of 3.25 to whoever wrote it, and one of 3 or of 25 to a reader that guesses."""
    (tmp_path / "x.csv").write_text("step,loss\n10,3,25\n20,3,125\n")
    with pytest.raises(InputError, match="row 1 has 3 cells and its header 2: decimal commas between commas"):
        read_table(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (1, "step,loss,val_loss\n10,3,25,\n20,3,12,\n"),
        (1, "step,loss\n1,4,\n2,3,98\n"),
        (2, "step,loss\n1,4\n2,3,98\n"),
        (1, "model,loss\na,3,25\nb,3,12\n"),  # words before decimal commas are no labels of rows
        (1, "step,loss\n1,3,25\n2,3,12\n"),
        (1, "step,loss\n10,5,3.25\n20,5,3.12\n"),
    ],
)
def test_a_row_longer_than_the_header_is_refused(row, text, tmp_path, recwarn):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(
        InputError, match=f"row {row} has . cells and its header .: decimal commas .*, and the header as"
    ):
        read_table(tmp_path / "x.csv")
    assert not recwarn.list


@pytest.mark.parametrize("labels", [['"1"', '"2"'], ['"17"', '"4"'], ["1", "2"], ["a", "b"]])
def test_labels_of_rows_as_r_writes_them_are_no_cells(labels, tmp_path):
    """write.table(sep=",") has no name above them."""
    text = '"step","loss"\n' + "".join(f"{label},{10 * k},3.{k}90\n" for k, label in enumerate(labels, 1))
    assert cells(tmp_path, text) == {"step": ["10", "20"], "loss": ["3.190", "3.290"]}


def test_lines_may_end_in_a_carriage_return(tmp_path):
    assert cells(tmp_path, "# of a Mac\rstep,loss\r10,3.5\r") == {"step": ["10"], "loss": ["3.5"]}
    assert header_of(tmp_path / "x.csv") == ["step", "loss"]


def test_a_cell_may_be_long(tmp_path):
    assert cells(tmp_path, f"step,note\n10,{'x' * 200_000}\n")["step"] == ["10"]


def test_what_is_no_table_has_no_header(tmp_path):
    for name, content in (("x.parquet", b"no"), ("x.csv", b""), ("x.txt", b"a,b\n"), ("x.csv.gz", b"\x1f\x8bxx")):
        (tmp_path / name).write_bytes(content)
        assert header_of(tmp_path / name) == []


def test_a_workbook_says_how_to_save_it(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"PK\x03\x04rest")
    with pytest.raises(InputError, match="is an archive or a workbook; unpack it, or save it as CSV"):
        read_table(tmp_path / "x.csv")


def test_cells_that_are_no_numbers_are_named(tmp_path):
    (tmp_path / "x.csv").write_text(
        "run,params,step,tokens,loss,task,acc\nr,1,1,1,2,t,0.5\nr,1,2,2,2,t,about 0.6\nr,1,3,3,2,t,n/a\n"
    )
    _, notes = with_scores([tmp_path / "x.csv"], ScoreOptions())
    assert notes[0].endswith("left out, no numbers: 1 of 'acc' (row 2: 'about 0.6')")


def test_positions_in_an_archive_name_the_remedy(tmp_path):
    """They are read in pieces, and so from a plain table; as a log they would lack a loss."""
    text = ",".join(tables.POSITIONS.columns) + "\n"
    (tmp_path / "p.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "p.csv").write_text(text.replace(",", ";"))
    for name in ("p.csv.gz", "p.csv"):
        with pytest.raises(
            InputError, match=r"holds positions, which are read from \.parquet or plain \.csv; unpack it"
        ):
            load(tmp_path / name)


def test_counts_are_in_what_their_names_say(tmp_path):
    (tmp_path / "log.csv").write_text("Step (k),Tokens (B),loss\n1,0.5,3.2\n2,1,3.1\n3,1.5,3.0\n")
    (curve,) = logs.read(tmp_path / "log.csv", LogOptions())
    assert curve.frame["step"].tolist() == [1000, 2000, 3000]
    assert curve.frame["tokens"].tolist() == [500_000_000, 1_000_000_000, 1_500_000_000]
    (tmp_path / "s.csv").write_text(
        "Model,Params [M],tokens_in_billions,Step,loss (nats),task,acc\na,70,0.5,5,3.1,x,0.2\na,70,1,10,3.0,x,0.3\n"
    )
    rows, _ = with_scores([tmp_path / "s.csv"], ScoreOptions(columns={"tokens": "tokens_in_billions"}))
    read = tables.read(tables.EVALUATIONS, rows)
    assert read["params"].tolist() == [70_000_000] * 2 and read["tokens"].tolist() == [500_000_000, 10**9]


def test_a_cell_with_its_own_unit_is_not_scaled_twice(tmp_path):
    (tmp_path / "log.csv").write_text("step,Params (M),Tokens (B),loss\n1,70M,1B,3.2\n2,70M,1500M,3.1\n3,70M,2,3.0\n")
    (curve,) = logs.read(tmp_path / "log.csv", LogOptions())
    assert curve.params == 70_000_000 and curve.frame["tokens"].tolist() == [10**9, 1_500_000_000, 2 * 10**9]
    (tmp_path / "s.csv").write_text(
        "model,Params (M),Tokens (B),step,loss,task,acc\na,70M,1B,5,3,x,0.2\na,70,2,10,3,x,0.3\n"
    )
    rows, _ = with_scores([tmp_path / "s.csv"], ScoreOptions())
    read = tables.read(tables.EVALUATIONS, rows)
    assert read["params"].tolist() == [70_000_000] * 2 and read["tokens"].tolist() == [10**9, 2 * 10**9]


def test_a_comma_before_two_digits_is_decimal():
    """Cells of JSONL, of text and of scores with their error, which no table's column has judged."""
    read = [
        (["3,99", "3,985", "4"], [3.99, 3.985, 4]),
        (["1,000", "12,345.5", "1,234,567"], [1000, 12345.5, 1234567]),
        (["0,351", "1,000"], [0.351, 1]),
        (["1,000", "1,250B", "1.5k"], [1000, 1250e9, 1500]),
        (["1,5B", "1.234,5"], [1.5e9, 1234.5]),
        (["0,1,2", "12,34,567", "3,"], [np.inf] * 3),
    ]
    for cells, expected in read:
        assert numbers_of(pd.Series(cells, dtype=object)).tolist() == expected


def test_a_score_with_its_error_may_have_a_decimal_comma(tmp_path):
    (tmp_path / "s.csv").write_text(
        'run,params,step,tokens,loss,task,acc\nr,1,1,1,3,x,"0,351 ± 0,01"\nr,1,2,2,3,x,"0,36 ± 0,01"\n'
    )
    rows, _ = with_scores([tmp_path / "s.csv"], ScoreOptions())
    assert tables.read(tables.EVALUATIONS, rows)["value"].tolist() == [0.351, 0.36]


@pytest.mark.parametrize("sep", ["\t", ",", ";"])
def test_a_separator_behind_every_row_is_passed_over(sep, tmp_path):
    text = "\n".join(sep.join(row) for row in (("step", "loss"), ("100", "5.500", ""), ("200", "5.250", "")))
    assert cells(tmp_path, text) == {"step": ["100", "200"], "loss": ["5.500", "5.250"]}


def test_a_row_too_long_names_the_separator(tmp_path):
    (tmp_path / "x.tsv").write_text("step\tloss\n100\t5.5\n200\t5.2\t\n")
    with pytest.raises(InputError, match="a tab too many"):
        read_table(tmp_path / "x.tsv")


def test_a_perplexity_may_be_above_a_thousand(tmp_path):
    frame = cells(tmp_path, 'step,perplexity\n100,"3,000"\n200,"2,000"\n')
    assert numbers_of(pd.Series(frame["perplexity"])).tolist() == [3000, 2000]


def written_as(name: str, path, rows: dict[str, list[str]]):
    """The same cells, all of them text, in a file without a separator."""
    frame = pd.DataFrame(rows, dtype=object)
    file = path / name
    if name.endswith(".parquet"):
        frame.to_parquet(file)
    elif name.endswith(".jsonl"):
        frame.to_json(file, orient="records", lines=True)
    else:
        file.write_text(json.dumps(frame.to_dict(orient="records" if name == "rows.json" else "list")))
    return file


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet", "rows.json", "columns.json"])
def test_a_comma_is_what_the_column_holds(name, tmp_path):
    """Text without a separator: a loss of 5500 nats is none, steps, tokens and what is accumulated are no fractions."""
    rows = {
        "step": ["1,000", "2,000", "3,000"],
        "accumulated_tokens": ["1,000", "2,000", "3,000"],
        "loss": ["5,500", "5,250", "5,125"],
        "lr": ["0,001", "0,001", "0,001"],
    }
    options = LogOptions(columns={"tokens": "accumulated_tokens"})
    (curve,) = logs.read(written_as(name, tmp_path, rows), options)
    assert curve.frame["step"].tolist() == curve.frame["tokens"].tolist() == [1000, 2000, 3000]
    assert curve.frame["loss"].tolist() == [5.5, 5.25, 5.125] and set(curve.frame["lr"]) == {0.001}
    rows["x"] = rows.pop("loss")
    (curve,) = logs.read(written_as(name, tmp_path, rows), LogOptions(columns={"loss": "x"}))
    assert curve.frame["loss"].tolist() == [5.5, 5.25, 5.125]


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet", "x.csv"])
def test_a_perplexity_of_thousands_or_decimals_is_refused(name, tmp_path):
    """Nobody can tell 5.5 from 5500 there; a cell below 1000 without a comma can."""
    for cells_, expected in (
        (["5,500", "5,250"], None),
        (["5,500", "950"], [5500, 950]),
        (["5,5", "5,25"], [5.5, 5.25]),
    ):
        rows = {"step": ["1", "2"], "perplexity": cells_}
        if name == "x.csv":
            (file := tmp_path / name).write_text("step\tperplexity\n" + "\n".join(map("{}\t{}".format, "12", cells_)))
        else:
            file = written_as(name, tmp_path, rows)
        if expected is None:
            with pytest.raises(InputError, match="'perplexity' may have decimal commas or thousands .'5,500'."):
                logs.read(file, LogOptions())
        else:
            (curve,) = logs.read(file, LogOptions())
            np.testing.assert_allclose(np.exp(curve.frame["loss"]), expected)


@pytest.mark.parametrize("sep", ["\t", ";", ","])
def test_perplexities_fall_below_a_thousand(sep, tmp_path):
    cell = '"{}"' if sep == "," else "{}"
    text = "\n".join(f"{step}{sep}{cell.format(ppl)}" for step, ppl in ((1, "12,345"), (2, "1,034"), (3, "987")))
    (tmp_path / "x.csv").write_text(f"step{sep}perplexity\n{text}\n")
    (curve,) = logs.read(tmp_path / "x.csv", LogOptions())
    np.testing.assert_allclose(np.exp(curve.frame["loss"]), [12345, 1034, 987])
