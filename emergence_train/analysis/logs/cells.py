"""Tables with a header line, CSV, TSV or Parquet, as cells of text: whatever parts the columns, the thousands and the decimals.

    step,loss            1000,3.25
    step;loss            1.000;3,25      (spreadsheets of half of Europe)
    "step","loss"        "1,000","3,25"  (the same, exported with commas between the columns)

Tables that are made to be read (Markdown, columns parted by blanks; typeset.py) are such, in files of any name.
A line `sep=;`, which Excel reads, and comments (#) before the header are passed over; a header may be such a comment itself.
"""

import contextlib
import csv
import io
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from emergence_train.analysis.logs import typeset
from emergence_train.analysis.logs.encoded import suffix_of, text_of, without_cut_line
from emergence_train.analysis.logs.log import Log
from emergence_train.analysis.logs.numbers import BEHIND, DECIMAL, EITHER, ONE_COMMA, role_of, scale_of
from emergence_train.errors import InputError
from emergence_train.input_files import regular

SUFFIXES = (".csv", ".tsv", ".parquet")
DATA = (".json", ".jsonl", ".ndjson")  # whose text is no table
LONGEST = 2**31 - 1  # characters of a cell
HEAD = 100_000  # bytes of a file that its kind is recognised by
SEPARATORS = ",;\t|"
ABSENT = ("", "nan", "na", "n/a", "none", "null", "-", "--", "inf", "-inf", "+inf")  # in a column of numbers
# A number in any country's hand
NUMBER = re.compile(r"[-+]?[\d.,]*\d[\d.,]*" + BEHIND, re.IGNORECASE)
POINT = r"[-+]?(?:\d+\.(?:\d\d?|\d{4,})|0*\.\d+)(?:e[-+]?\d+)?\s*%?"  # before decimals: it parts no thousands
PARTED = r"\d{1,3}(?:\.\d{3})*|"  # a whole number whose thousands are parted by points; or nothing
GAPS = r"(?<=\d)[ \u00a0\u202f\u2009'’_](?=\d{3}(?!\d))"  # what else parts thousands: 1 000, 1'000, 1_000
INDEX = re.compile(r"__index_level_\d+__")
UNPLAIN = re.compile("[, \u00a0\u202f\u2009'’_]")  # in a column that may need rewriting


def read_log(path: Path, name: str) -> Log:
    """`read_table` of a log that may be being written: without a last row that is cut off, with a note."""
    frame, notes = _read(path, without_cut_line)
    return Log(name, path, frame, notes=notes)


def read_table(path: Path) -> pd.DataFrame:
    """A file's cells as they are: text of CSV and TSV, empty ones None; the index counts rows from 1. Raises InputError."""
    return _read(path, lambda text: (text, ()))[0]


def _read(path: Path, whole: Callable[[str], tuple[str, tuple[str, ...]]]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    try:
        if suffix_of(path) == ".parquet":
            table = pq.read_table(regular(path))
            # with an index of pandas as the columns that it is in the file
            frame = table.rename_columns(_names_of(table.schema)).to_pandas(ignore_metadata=True).astype(object)
            frame = frame.where(frame.notna(), None)
        else:
            text, notes = whole(text_of(path))
            frame = _read_text(text, suffix_of(path))
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    except (OSError, ValueError, csv.Error, pd.errors.ParserWarning, pa.ArrowException) as error:
        raise InputError(
            f"{path}: cannot be read as a table ({' '.join(str(error).split())[:160]}); give --format if it is a text log"
        ) from error
    if frame.empty:
        raise InputError(f"{path}: has no rows; name a file that has some")
    frame.index = pd.RangeIndex(1, len(frame) + 1)
    return frame, notes


def _names_of(schema: pa.Schema) -> list[str]:
    """The names of a Parquet file's columns; an index of text without a name, as pandas writes it, is of models."""
    kinds = {field.name: getattr(field.type, "value_type", field.type) for field in schema}
    texts = (name for name in schema.names if INDEX.fullmatch(name) and str(kinds[name]) in ("string", "large_string"))
    model = None if {"run", "model"} & {*schema.names} else next(texts, None)
    return ["model" if name == model else name for name in schema.names]


def header_of(path: Path) -> list[str]:
    """The names of a table's columns; none where it is no table."""
    try:
        return columns_of(path)
    except (OSError, ValueError, pa.ArrowException, InputError):
        return []


def columns_of(path: Path) -> list[str]:
    """As header_of; raises InputError and others for a table that cannot be read."""
    if suffix_of(path) == ".parquet":
        return _names_of(pq.read_schema(regular(path)))
    text, suffix = _plain_table(text_of(path, HEAD, errors="replace"), suffix_of(path))
    if suffix not in SUFFIXES:
        return []
    body, separator = _from_header(text, suffix)
    return list(pd.read_csv(io.StringIO(body.partition("\n")[0]), nrows=0, sep=separator, skipinitialspace=True))


def _plain_table(text: str, suffix: str) -> tuple[str, str]:
    """The text and its kind, of a typeset table with tabs between the cells; a last line that is cut off is no row."""
    if suffix in DATA:
        return text, suffix
    if suffix not in SUFFIXES and is_delimited(text):
        return text, ".csv"
    table = typeset.parted(text if len(text) < HEAD or "\n" not in text else text[: text.rindex("\n") + 1])
    return (text, suffix) if table is None else (table, typeset.SUFFIX)


def is_delimited(text: str) -> bool:
    """Whether a file of another name begins as a table with a header does, each of whose rows has a number."""
    body, separator = _from_header(text, "")
    rows = [line.split(separator) for line in body.split("\n")[:3] if line]
    alike = len(rows) > 1 and len(rows[0]) > 1 and len({*map(len, rows)}) == 1
    return alike and not any(map(_is_number, rows[0])) and all(any(map(_is_number, row)) for row in rows[1:])


def _read_text(text: str, suffix: str) -> pd.DataFrame:
    delimited = suffix not in (*SUFFIXES, *DATA) and is_delimited(text)
    if suffix not in DATA and not delimited and (table := typeset.parted(text)) is not None:
        text, suffix = table, typeset.SUFFIX
    body, separator = _from_header(text, suffix)
    if _rows_end_in(separator, body):
        body = body.replace("\n", f"{separator}\n", 1)  # the header as the rows: a column of no name and no cells
    labelled = _has_row_labels(body, separator)
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # of rows that are cut to the header's width
        frame = pd.read_csv(
            io.StringIO(body),
            sep=separator,
            dtype=str,
            keep_default_na=False,
            skipinitialspace=True,
            index_col=None if labelled else False,
        )
    frame = frame.rename(columns=lambda name: str(name).strip()).fillna("").astype(object)
    frame = frame.loc[:, [not (str(name).startswith("Unnamed: ") and frame[name].eq("").all()) for name in frame]]
    _check_headers(frame)
    frame = _with_points(frame, separator)
    return frame.where(frame != "", None)


def _check_headers(frame: pd.DataFrame) -> None:
    """Raises ValueError for a row that is a header of its own, with the columns in another order or other ones."""
    names = [str(name).lower() for name in frame]
    for row in frame.index[frame.isin([*frame.columns]).any(axis=1)]:
        cells = [cell.strip().lower() for cell in frame.loc[row]]
        if cells != names and len({*cells} & {*names}) > 1 and not any(map(_is_number, cells)):
            named = ", ".join(cells)
            raise ValueError(f"its row {row + 1} is a header of other columns, {named}: write what follows as a file")


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
    """Cells of any length for the time being: the limit is the whole process's."""
    before = csv.field_size_limit(LONGEST)
    try:
        yield
    finally:
        csv.field_size_limit(before)


@_long_cells()
def _rows_end_in(separator: str, body: str) -> bool:
    """Whether every row, and not the header, has a separator at its end; between commas only where decimals have points."""
    header, *rows = [*filter(None, csv.reader(io.StringIO(body), delimiter=separator, skipinitialspace=True))] or [[]]
    if not rows or {*map(len, rows)} != {len(header) + 1} or any(row[-1].strip() for row in rows):
        return False
    return separator != "," or any(re.fullmatch(r"[-+]?\d*\.\d+", cell) for row in rows for cell in row)


@_long_cells()
def _has_row_labels(body: str, separator: str) -> bool:
    """Whether the rows have one cell more than the header has names, their label, as R's write.table writes them.

    Raises ValueError where rows have more cells for another reason: read by the names, the decimals of "3,25" would be
    another column's. Labels differ from row to row, and are words, in quotes or 1, 2, 3; the decimals behind them have points.
    """
    rows = csv.reader(io.StringIO(body), delimiter=separator, skipinitialspace=True)
    width = len(next(rows, []))
    at, cells = next(((k, row) for k, row in enumerate(rows, 1) if len(row) > width), (0, []))
    if not at:
        return False
    if at == 1 and len(cells) == width + 1 and cells[-1]:
        every = [cells, *filter(None, rows)]
        labels = [row[0] for row in every]
        quoted = body.partition("\n")[2].lstrip().startswith('"')
        named = quoted or not any(map(_is_number, labels)) or labels == [str(k) for k in range(1, len(labels) + 1)]
        points = any(re.fullmatch(r"[-+]?\d*\.\d+(?:e[-+]?\d+)?", cell) for row in every for cell in row[1:])
        if named and points and len({*labels}) == len(labels) and {*map(len, every)} == {width + 1}:
            return True
    mark = {",": "comma", ";": "semicolon", "\t": "tab"}.get(separator, repr(separator))
    reason = f"{'decimal commas between commas, or ' if separator == ',' else ''}a {mark} too many?"
    raise ValueError(
        f"its row {at} has {len(cells)} cells and its header {width}: {reason} "
        f"write it with semicolons or points, and the header as the rows"
    )


def _from_header(text: str, suffix: str) -> tuple[str, str]:
    """The text from its header line on, with "\\n" behind each line, and what parts its columns."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    at = 0
    while at < len(lines) - 1 and (not lines[at].strip() or lines[at].startswith("#")):
        at += 1
    directive = re.fullmatch(r'"?sep=(.)"?', lines[at])
    at += bool(directive)
    separator = directive[1] if directive else _separator(lines[at], suffix)
    before = lines[at - 1].lstrip("# ") if at and lines[at - 1].startswith("#") else ""
    if before.count(separator) == lines[at].count(separator) > 0 and _is_number(lines[at].split(separator)[0]):
        return "\n".join([before, *lines[at:]]), separator
    return "\n".join(lines[at:]), separator


def _separator(header: str, suffix: str) -> str:
    """The commonest in the header; where all are as common, what the file's name says."""
    outside = re.sub(r'"[^"]*"', "", header)
    order = "\t,;|" if suffix == ".tsv" else SEPARATORS
    return max(order, key=outside.count)


def _is_number(cell: str) -> bool:
    return NUMBER.fullmatch(cell.strip().strip('"')) is not None


def _with_points(frame: pd.DataFrame, separator: str) -> pd.DataFrame:
    """Columns of numbers with a point before the decimals: "3,25", "1.234,5" and "1 000" so become 3.25, 1234.5 and 1000.

    "1,000.5" and "1,000,000" stay. Where one column has decimal commas and none decimal points, points before three digits
    part the thousands of counts ("1.000"), and between semicolons or tabs every single comma is decimal.
    """
    columns: dict[str, pd.Series] = {}
    decimal, either = [], []
    for name in frame:
        if not frame[name].str.contains(UNPLAIN).any():
            continue
        cells = frame[name].str.strip().str.replace(GAPS, "", regex=True)
        known = cells[~cells.str.lower().isin(ABSENT)]
        if not known.map(lambda cell: NUMBER.fullmatch(cell) is not None).all():
            continue
        columns[name] = cells
        verdict = _has_decimal_commas(str(name), known, separator)
        if verdict is None:
            either.append(name)
        elif verdict:
            decimal.append(name)
    pointed = bool(decimal or either) and any(_has_points(str(name), frame[name]) for name in frame)
    if not pointed:
        between = separator in ";\t"
        spreads = between and (bool(decimal) or any(role_of(name) == "small" for name in either))
        decimal += [name for name in either if spreads or scale_of(name) != 1]
    for name in decimal:
        columns[name] = columns[name].str.replace(".", "", regex=False).str.replace(",", ".", regex=False)
    if decimal and not pointed:
        whole = [n for n in frame if n not in decimal and _is_count(str(n)) and frame[n].str.fullmatch(PARTED).all()]
        columns |= {name: frame[name].str.replace(".", "", regex=False) for name in whole}
    return frame.assign(**columns)


def _is_count(name: str) -> bool:
    """Whether a column is of whole numbers by its name: "step", but neither "loss_step" nor "Tokens (B)"."""
    return role_of(name) == "count" and scale_of(name) == 1


def _has_points(name: str, cells: pd.Series) -> bool:
    """Whether a column that is known by its name has points before decimals; a loss of 3.990 has."""
    role = role_of(name)
    if role in ("small", "perplexity"):
        return bool(cells.str.fullmatch(POINT + r"|[-+]?\d+\.\d+").any())
    return role == "count" and bool(cells.str.fullmatch(POINT).any())


def _has_decimal_commas(name: str, cells: pd.Series, separator: str) -> bool | None:
    """Whether the commas of a column of numbers stand before decimals, and not between thousands; None: either may be.

    Three digits behind the only comma are decimals in a loss, or between semicolons; in a count the other columns decide. In a
    perplexity they are thousands where cells below 1000 have no comma.
    """
    with_comma = cells[cells.str.contains(",", regex=False)]
    if with_comma.empty or (cells.str.contains(r"\..*\.|\.\d*$", regex=True) & ~cells.str.contains(",")).any():
        return False
    if not with_comma.map(lambda cell: (DECIMAL.fullmatch(cell) or ONE_COMMA.fullmatch(cell)) is not None).all():
        return False
    if with_comma.map(lambda cell: DECIMAL.fullmatch(cell) is not None).any():
        return True
    role = role_of(name)
    if role == "perplexity":  # which may be above 1000
        alike = cells.map(lambda cell: EITHER.fullmatch(cell) is not None).all()
        return (True if separator == ";" else None) if alike else False
    alike = cells.str.fullmatch(r"[-+]?\d{1,3},\d{3}").all()
    if role == "small" and (separator == ";" or alike):
        return True
    if separator == ";" and role != "count" and scale_of(name) == 1:
        return True
    return None
