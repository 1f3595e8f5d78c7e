"""Tables that are made to be read: Markdown, boxes, LaTeX and columns parted by blanks, as text with tabs between the cells.

    | step | loss |      "step" "loss"       # step  loss      step & loss \\\\
    |-----:|-----:|      "1" 100 5.5         100  5.5          100 & 5.5 \\\\
    |  100 |  5.5 |      (R's write.table)   (gnuplot, numpy)  (LaTeX's tabular)
"""

import re
from collections.abc import Callable, Iterator

from emergence_train.errors import InputError

# Lines between rows, no cells
RULE = re.compile(r"[\s|+\-=:─━═│┃║╞╡╪┌┐└┘├┤┬┴┼╭╮╰╯┏┓┗┛┡┩╇┳┻╋╔╗╚╝╠╣╬╦╩╟╢╫╤╧╥╨╒╕╘╛╓╖╙╜]+")
BARS = str.maketrans({"│": "|", "┃": "|", "║": "|"})
MARKUP = re.compile(r"\\(?:textbf|textit|emph|underline|mathbf|text)\{([^{}]*)\}|\*\*|__|`|\$")
WORDS = re.compile(r'"[^"]*"|\S+')
RULES_TEX = re.compile(r"\\(?:hline|toprule|midrule|bottomrule|c(?:line|midrule)(?:\([^)]*\))?\{[^}]*\})")
NUMBER = re.compile(r"[-+]?(?:[\d.,]*\d[\d.,]*(?:e[-+]?\d+)?|nan|inf|na)[%kmbgt]?", re.IGNORECASE)
SUFFIX = ".tsv"  # what the text is afterwards


def parted(text: str) -> str | None:
    """The table of a text with a tab between cells and its header first; None: it holds none of these kinds.

    Raises InputError for several tables whose headers differ.
    """
    for rows_of in (_between_bars, _latex, _between_blanks):
        rows = rows_of(text)
        if rows is not None:
            return "\n".join("\t".join(cell.replace("\t", " ") for cell in row) for row in rows) + "\n"
    return None


def _joined(blocks: list[list[list[str]]]) -> list[list[str]] | None:
    """The rows of tables of one header, behind each other; None where there is no table with a row."""
    blocks = [block for block in blocks if len(block) > 1]
    if not blocks:
        return None
    if any(block[0] != blocks[0][0] for block in blocks):
        raise InputError(f"holds {len(blocks)} tables of other columns; keep one")
    return [blocks[0][0], *(row for block in blocks for row in block[1:])]


def _blocks(text: str, row_of: Callable[[str], list[str] | None]) -> Iterator[list[tuple[list[str], bool]]]:
    """Lines of a table behind each other: (cells, whether a rule follows)."""
    block: list[tuple[list[str], bool]] = []
    for line in [*text.splitlines(), ""]:
        stripped = line.strip()
        if stripped and RULE.fullmatch(stripped) and re.search(r"[-=─━═]", stripped):
            if block:
                block[-1] = block[-1][0], True
            continue
        cells = row_of(stripped)
        if cells is not None:
            block.append((cells, False))
        elif block:
            yield block
            block = []


def _between_bars(text: str) -> list[list[str]] | None:
    """Markdown's, and boxes that programs draw: the header is what has a rule below it."""

    if not re.search("[|│┃║]", text):
        return None

    def row_of(line: str) -> list[str] | None:
        line = line.translate(BARS)
        if line.count("|") < 1 or "\t" in line:
            return None
        return [MARKUP.sub(r"\1", cell).strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]

    blocks = []
    for block in _blocks(text, row_of):
        cells, ruled = block[0]
        if ruled and len(cells) > 1 and all(len(row) == len(cells) for row, _ in block):
            blocks.append([_named(cells), *(row for row, _ in block[1:])])
    return _joined(blocks)


def _named(header: list[str]) -> list[str]:
    """Names for columns without one, as of a sign between a value and its error."""
    return [name or f"column {k}" for k, name in enumerate(header, 1)]


def _latex(text: str) -> list[list[str]] | None:
    """tabular's rows; a header of several lines is no table."""
    blocks = []
    for body in re.findall(r"\\begin\{(?:tabular|longtable|tabularx)\*?\}(.*?)\\end\{", text, re.DOTALL):
        body = re.sub(r"^(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})+", "", body)
        lines = RULES_TEX.sub("", re.sub(r"(?<!\\)%.*", "", body)).split("\\\\")
        rows = [[_plain_tex(cell) for cell in re.split(r"(?<!\\)&", line)] for line in lines if line.strip()]
        if rows and len(rows[0]) > 1 and all(len(row) == len(rows[0]) for row in rows):
            blocks.append([_named(rows[0]), *rows[1:]])
    return _joined(blocks)


def _plain_tex(cell: str) -> str:
    text = MARKUP.sub(r"\1", cell.replace("\\pm", "±").replace("{,}", ","))
    return re.sub(r"\\([%&_#$])", r"\1", text).strip()


def _between_blanks(text: str) -> list[list[str]] | None:
    """Columns parted by blanks, every row as long as the header or longer by its label, with numbers in every row."""
    first = re.search(r"^(?![#%]|[\s\-=]*$).+$", text, re.MULTILINE)
    if first is None or re.search(r"[\t;,|:={\[<]", first[0].strip()):
        return None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    above = [line.lstrip("#%! ") for line in lines if line.startswith(("#", "%"))]
    rows = [line for line in lines if not line.startswith(("#", "%")) and not RULE.fullmatch(line)]
    for cells_of in (WORDS.findall, re.compile(r"\s{2,}").split):
        cells = [list(cells_of(row)) for row in rows]
        if above and _is_row(cells[0]) and len(cells_of(above[-1])) == len(cells[0]):
            cells.insert(0, list(cells_of(above[-1])))
        table = _labelled(cells)
        if table is not None:
            return [[cell.strip('"') for cell in row] for row in table]
    return None


def _labelled(cells: list[list[str]]) -> list[list[str]] | None:
    """Header and rows of equal length, the labels that R and pandas write before each row apart; None: no such table."""
    header, rows = cells[0], cells[1:]
    if not rows or len({*map(len, rows)}) != 1 or any(map(NUMBER.fullmatch, header)) or not all(map(_is_row, rows)):
        return None
    if len(rows[0]) == len(header) > 1:
        return cells
    labels = [row[0] for row in rows]
    if len(rows[0]) != len(header) + 1 or len({*labels}) != len(labels):
        return None
    plain = [label.strip('"') for label in labels]
    counted = [str(k) for k in range(len(rows))], [str(k) for k in range(1, len(rows) + 1)]
    if plain in counted or all(label.isdigit() and '"' in raw for label, raw in zip(plain, labels)):
        return [header, *(row[1:] for row in rows)]
    if any(map(NUMBER.fullmatch, labels)):
        return None
    return [["name", *header], *rows]


def _is_row(cells: list[str]) -> bool:
    return any(NUMBER.fullmatch(cell) for cell in cells[-2:])
