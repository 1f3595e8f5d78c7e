"""Tables against plain loops."""

import itertools
import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from emergence_train.errors import InputError
from emergence_train.grokking import tasks
from emergence_train.section import Section

HERE = Path(".")
POLYNOMIALS = {
    "x^2+xy+y^2": lambda x, y: x * x + x * y + y * y,
    "x^3 + x*y^2 + y": lambda x, y: x**3 + x * y * y + y,
    "3x-2y+4": lambda x, y: 3 * x - 2 * y + 4,
    "-xy": lambda x, y: -x * y,
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
}


def modular(modulus: int, operation: str) -> tasks.QuestionTable:
    return tasks.load(tasks.Modular(kind="modular", modulus=modulus, operation=operation), HERE)


@pytest.mark.parametrize("operation", POLYNOMIALS)
def test_polynomials_are_computed_modulo_p(operation):
    table = modular(11, operation)
    expected = [((x, y), POLYNOMIALS[operation](x, y) % 11) for x in range(11) for y in range(11)]
    assert list(zip(map(tuple, table.questions.tolist()), table.answers.tolist())) == expected


def test_division_is_undone_by_multiplication():
    table = modular(13, "divide")
    assert len(table.answers) == 13 * 12
    assert all(answer * y % 13 == x for (x, y), answer in zip(table.questions.tolist(), table.answers.tolist()))


@pytest.mark.parametrize("operation", ["x^2+z", "xx", "x+", "", "2^x", "x y z"])
def test_what_is_no_polynomial_is_refused(operation):
    with pytest.raises(ValueError, match="unknown; choose add"):
        tasks.parse_polynomial(operation)


def test_division_needs_a_prime():
    with pytest.raises(ValueError, match="prime"):
        tasks.Modular(kind="modular", modulus=15, operation="divide")


def test_permutations_compose_right_to_left():
    table = tasks.load(tasks.Permutations(kind="permutations", degree=4), HERE)
    elements = list(itertools.permutations(range(4)))
    assert len(table.answers) == 24 * 24 and table.symbols == table.classes == 24
    for (a, b), answer in zip(table.questions.tolist(), table.answers.tolist()):
        assert elements[answer] == tuple(elements[a][elements[b][k]] for k in range(4))


@pytest.mark.parametrize(("bits", "examples"), [(6, 64), (40, 500)])
def test_parity_is_of_the_first_bits(bits, examples):
    task = tasks.Parity(kind="parity", bits=bits, relevant=3, examples=examples)
    table = tasks.load(task, HERE)
    assert table.questions.shape == (examples, bits) and len({tuple(row) for row in table.questions}) == examples
    assert [(row[0] + row[1] + row[2]) % 2 for row in table.questions.tolist()] == table.answers.tolist()
    assert 0.4 < table.answers.mean() < 0.6


def test_a_file_of_words_is_padded_and_coded(tmp_path):
    rows = [("two plus two", "four"), ("two plus", "none"), ("one plus two", "three"), ("one", "none")]
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer in rows]
    (tmp_path / "q.jsonl").write_text("\n".join([*lines, lines[0]]))
    table = tasks.load(tasks.AnyTable(kind="table", file="q.jsonl"), tmp_path)
    assert table.questions.shape == (4, 3) and table.symbols == 4 and table.classes == 3
    words = sorted({"", "two", "plus", "one"})
    texts = [" ".join(words[k] for k in row).strip() for row in table.questions.tolist()]
    assert texts == [question for question, _ in rows]
    assert table.answers[1] == table.answers[3]


def test_columns_of_a_csv_are_symbols(tmp_path):
    (tmp_path / "q.csv").write_text("a,b,c\n1,2,x\n1,3,y\n2,2,x\n2,3,y\n")
    task = tasks.AnyTable(kind="table", file="q.csv", question=["a", "b"], answer="c")
    assert tasks.AnyTable.model_validate({"kind": "table", "file": "q.csv", "question": "a"}).question == ["a"]
    table = tasks.load(task, tmp_path)
    np.testing.assert_array_equal(table.questions, [[0, 1], [0, 2], [1, 1], [1, 2]])
    assert table.answers.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("question,answer\na,1\na,2\nb,1\nc,1\n", "two answers; remove a row"),
        ("question,reply\na,1\n", "row 1 has no 'answer'"),
        ("question,answer\na,1\nb,\nc,1\nd,2\n", r"row 2 has no 'answer' \(it has question\)"),
        ("question,answer\na,1\n", "has 1 questions; give at least 4"),
        ("question,answer\na,1\nb,1\nc,1\nd,1\n", "every question has the same 'answer'"),
        ("question,question,answer\na,b,1\n", "the header has 'question' twice"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, says):
    (tmp_path / "q.csv").write_text(text)
    with pytest.raises(InputError, match=says):
        tasks.load(tasks.AnyTable(kind="table", file="q.csv"), tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\xfe\x00", "cannot be read"),
        (b'\n{"question": "a", "answer": 1}\n{', r"cannot be read \(line 3: "),
        (b'{"question": ["a", "b"], "answer": 1}\n', "row 1: 'question' is a list or an object"),
        (b"[1, 2]\n", "give an object a line"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, content, says):
    (tmp_path / "q.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=says):
        tasks.load(tasks.AnyTable(kind="table", file="q.jsonl"), tmp_path)


def test_an_answer_that_is_asked_is_refused():
    with pytest.raises(ValueError, match="the answer 'b' is a column of question too"):
        tasks.AnyTable(kind="table", file="q.csv", question=["a", "b"], answer="b")


class Pairs(Section):
    """A task of one's own that reads a file, as docs/how-to/extend.md has it."""

    kind: Literal["pairs"] = "pairs"
    file: str = "t.txt"


def test_a_task_of_ones_own_is_its_table():
    """Another content of its file is another task, and another name of the file is not; sums and products modulo 5 by hand."""
    x, y = np.divmod(np.arange(25), 5)
    added, multiplied = (tasks.QuestionTable(np.stack([x, y], 1), a % 5, 5, 5) for a in (x + y, x * y))
    assert tasks.identity(Pairs(), added) != tasks.identity(Pairs(), multiplied)
    assert tasks.identity(Pairs(), added) == tasks.identity(Pairs(file="u.txt"), added)


def test_shipped_generated_tasks_are_their_keys():
    task = tasks.Parity(kind="parity", bits=6, relevant=3, examples=64)
    assert tasks.identity(task, tasks.load(task, HERE)) == {"kind": "parity", "bits": 6, "relevant": 3, "examples": 64}
