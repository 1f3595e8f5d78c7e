"""The rows of JSON: an object a line, a list of objects, an object of columns; nested ones by joined names."""

import json


def flat(row: dict, prefix: str = "") -> dict:
    """{"train": {"loss": 1}} as {"train/loss": 1}; lists are left out."""
    cells: dict = {}
    for key, value in row.items():
        if isinstance(value, dict):
            cells |= flat(value, f"{prefix}{key}/")
        elif not isinstance(value, list):
            cells[f"{prefix}{key}"] = value
    return cells


def records_of(text: str) -> list[dict] | None:
    """The rows of one JSON value: a list of objects, or an object of columns (as lists, or as pandas writes them); else None."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        return content
    return _of_columns(content) if isinstance(content, dict) and len(content) > 1 else None


def _of_columns(content: dict) -> list[dict] | None:
    """The rows of columns that are lists, or objects by the row's number, or by its step where no column has that."""
    indices = [list(column) if isinstance(column, dict) else None for column in content.values()]
    columns = [list(column.values()) if isinstance(column, dict) else column for column in content.values()]
    if not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        return None
    if any(isinstance(cell, (dict, list)) for column in columns for cell in column):
        return None
    index = indices[0]
    if any(other != index for other in indices) or index is not None and not all(map(str.isdigit, index)):
        return None
    rows = [dict(zip(content, cells)) for cells in zip(*columns)]
    if index is None or index == [str(k) for k in range(len(index))] or "step" in map(str.lower, content):
        return rows
    return [{"step": int(step)} | row for step, row in zip(index, rows)]


def objects_of(text: str) -> list:
    """The values of a JSON text: those of its list, itself, or those of its lines, which U+2028 does not end.

    Raises:
        ValueError, RecursionError: it is none.
    """
    try:
        content = json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    return content if isinstance(content, list) else [content]
