"""result.json of the analyses against stored results and their schemas; as_json and schema by hand."""

import json
import math
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
from result_tables import write_emergence, write_temporal, write_weights

from emergence_train.analysis import emergence, temporal
from emergence_train.analysis.emergence import EmergenceResult
from emergence_train.analysis.position_weights import PositionWeightsResult, compare_position_weights
from emergence_train.analysis.results import Interval, Nats, Unit, absent, as_json, inline, keyed, schema
from emergence_train.analysis.temporal import TemporalResult
from emergence_train.analysis.temporal.result import FinalForecast
from support import assert_same, command

GOLDEN = Path(__file__).parent / "golden"  # `analyze NAME --json` of the tables in result_tables.py before dataclasses
SCHEMAS = {"temporal": TemporalResult, "emergence": EmergenceResult, "weights": PositionWeightsResult}
LIST = {"temporal": "runs", "emergence": "tasks", "weights": "rows"}  # the list of objects that a result consists of
UNITS = {"temporal": 25, "emergence": 25, "weights": 5}  # at least as many annotations have a unit


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("results")
    return {
        "temporal": as_json(temporal.analyze_temporal(write_temporal(folder), fit_fraction=0.5)),
        "emergence": as_json(emergence.analyze_emergence(write_emergence(folder))),
        "weights": as_json(compare_position_weights(write_weights(folder))),
    }


@pytest.mark.parametrize("name", ["temporal", "emergence"])
def test_result_json_equals_the_stored_one(results, name):
    """Equal byte for byte on the machine that wrote it; elsewhere the last digits may differ."""
    assert_same(json.loads(json.dumps(results[name])), json.loads((GOLDEN / f"{name}.json").read_text()))


# ------------------------------------------------------------------------------------------------------- the schema


def violations(value, rule: dict, definitions: dict, where: str = "$") -> list[str]:
    """The violations of a JSON schema by `value`, for the keywords that `schema` writes."""
    if "$ref" in rule:
        return violations(value, definitions[rule["$ref"].removeprefix("#/$defs/")], definitions, where)
    if "anyOf" in rule:
        each = [violations(value, part, definitions, where) for part in rule["anyOf"]]
        return min(each, key=len) if all(each) else []
    if "enum" in rule:
        return [] if value in rule["enum"] else [f"{where}: {value!r} is none of {rule['enum']}"]
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "null": type(None)}
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = number if rule["type"] == "number" else type(value) is kinds[rule["type"]]
    if not fits:
        return [f"{where}: {value!r} is no {rule['type']}"]
    if rule["type"] == "array":
        return [
            v for k, part in enumerate(value) for v in violations(part, rule["items"], definitions, f"{where}[{k}]")
        ]
    if rule["type"] != "object":
        return []
    named, more = rule.get("properties", {}), rule["additionalProperties"]
    wrong = [f"{where}: {key} is missing" for key in rule.get("required", ()) if key not in value]
    for key, part in value.items():
        inner = named.get(key, more)
        wrong += violations(part, inner, definitions, f"{where}.{key}") if inner else [f"{where}: {key} is not allowed"]
    return wrong


@pytest.mark.parametrize("name", SCHEMAS)
def test_results_conform_to_their_schema(results, name):
    rules = schema(SCHEMAS[name])
    assert violations(results[name], rules, rules["$defs"]) == []


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_wrong_result_is_refused(results, name):
    """The check of this test sees a missing key, one too many, text for a number, a null that is not allowed."""
    rules = schema(SCHEMAS[name])
    part = LIST[name]
    first = results[name][part][0]
    key = "loss" if name == "weights" else "notes"
    for wrong in (
        {word: value for word, value in first.items() if word != key},
        first | {"more": 1},
        first | {key: "text"},
        first | {key: None},
    ):
        assert violations(results[name] | {part: [wrong]}, rules, rules["$defs"]) != []


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_number_of_the_schema_is_described(name):
    """Units and meanings come from the annotations; every class has a docstring of its own."""
    rules = schema(SCHEMAS[name])
    for owner, rule in rules["$defs"].items():
        assert not rule["description"].startswith(f"{owner}("), owner
    text = json.dumps(rules)
    assert text.count('"unit"') >= UNITS[name] and "nats per token" in text


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_command_line_prints_the_schema(name):
    done = command("analyze", name, "--schema")
    assert done.returncode == 0 and json.loads(done.stdout) == schema(SCHEMAS[name])


# ------------------------------------------------------------------------------------------------------------ by hand


@dataclass(frozen=True)
class Inner:
    """Numbers."""

    a: Nats
    b: float | None = absent()


@dataclass(frozen=True, kw_only=True)
class Outer:
    """A result."""

    first: int = keyed("from")
    kind: Literal["x", "y"]
    each: Annotated[tuple[Inner, ...], "in order"]
    by_name: dict[str, bool]
    shown: Annotated[Nats | None, Unit("bits"), "or nothing"]
    inner: Inner | None = inline()


def test_as_json_by_hand():
    value = Outer(first=np.int64(1), kind="x", each=(Inner(2.0),), by_name={"n": np.True_}, shown=np.inf)
    plain = {"from": 1, "kind": "x", "each": [{"a": 2.0}], "by_name": {"n": True}, "shown": None}
    assert as_json(value) == plain and type(as_json(value)["from"]) is int
    with_inner = Outer(first=1, kind="y", each=(), by_name={}, shown=1.0, inner=Inner(3.0, math.nan))
    assert as_json(with_inner) == {"from": 1, "kind": "y", "each": [], "by_name": {}, "shown": 1.0, "a": 3.0, "b": None}


def test_schema_by_hand():
    inner = {
        "type": "object",
        "description": "Numbers.",
        "properties": {"a": {"type": "number", "unit": "nats per token"}, "b": {"type": "number"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    outer = {
        "type": "object",
        "description": "A result.",
        "properties": {
            "from": {"type": "integer"},
            "kind": {"enum": ["x", "y"]},
            "each": {"type": "array", "items": {"$ref": "#/$defs/Inner"}, "description": "in order"},
            "by_name": {"type": "object", "additionalProperties": {"type": "boolean"}},
            "shown": {
                "anyOf": [{"type": "number", "unit": "nats per token"}, {"type": "null"}],
                "unit": "bits",
                "description": "or nothing",
            },
            **inner["properties"],
        },
        "required": ["from", "kind", "each", "by_name", "shown"],
        "additionalProperties": False,
    }
    assert schema(Outer) == {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Outer",
        "$ref": "#/$defs/Outer",
        "$defs": {"Outer": outer, "Inner": inner},
    }


def test_an_annotation_without_a_json_form_is_refused():
    @dataclass(frozen=True)
    class Wrong:
        values: typing.Any

    with pytest.raises(TypeError, match="no JSON form"):
        schema(Wrong)


def test_an_absent_forecast_has_its_reason_alone():
    assert as_json(FinalForecast(reason="too young")) == {"reason": "too young"}
    assert as_json(FinalForecast(loss=2.0, sd=0.1, low95=1.8, high95=2.2)).keys() == {"loss", "sd", "low95", "high95"}
    assert as_json(Interval(1.0, None, None)) == {"value": 1.0, "low95": None, "high95": None}
