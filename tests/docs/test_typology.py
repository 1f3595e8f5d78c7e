"""The page of kinds of task: counts by a plain loop over the results, and verdicts that turn with the numbers."""

import copy

from docs.site_pages import typology
from docs.site_pages.measurements import load_result
from support import ROOT


def test_every_public_task_is_counted_once():
    tasks = load_result("typology.json")["tasks"]
    rows = [line.split(" | ") for line in typology.public().splitlines()[2:]]
    counts = [int(cell.rstrip(" |").split(":")[0]) for row in rows for cell in row[2:]]
    assert sum(counts) == len(tasks) == len({(row["source"], row["task"]) for row in tasks})
    emergent = {row["task"] for row in tasks if row["verdict"] == "emergent" and row["source"] == "gadre"}
    (line,) = [row for row in rows if row[0].startswith("| emergent")]
    assert line[2] == f"{len(emergent)}: {', '.join(sorted(emergent))}"


def test_the_sources_list_is_compared_task_by_task():
    rows = [row for row in load_result("typology.json")["tasks"] if row["source"] == "gadre"]
    assert sum(row["source_above_chance"] for row in rows) == 17 and len(rows) == 46
    for row in rows:  # what the list claims: a small model 10 points above chance
        assert not row["source_above_chance"] or row["above"]["small"] >= 0.0995, row["task"]
    listed, others = typology.beside_the_source().splitlines()[2:4]
    for row in rows:
        differs = row["verdict"] in (
            ("at-chance", "inverse") if row["source_above_chance"] else ("emergent", "gradual")
        )
        line = listed if row["source_above_chance"] else others
        assert (f"{row['task']} ({row['verdict']};" in line) is differs, row["task"]


def test_explanations_turn_with_the_numbers(monkeypatch):
    plain = typology.load_result

    def changed(name: str) -> dict:
        result = copy.deepcopy(plain(name))
        if name == "critical_instances.json":
            for run in result["runs"]:
                if "composition" in run:
                    run["composition"] |= {"explained": {"value": 0.3, "low95": 0.1, "high95": 0.4}}
            result["told_by"]["instances"] = {"area": 0.55, "sign": 1, "pairs": 20}
        if name == "critical_mass.json":
            result["told_by"]["loss"] = {"area": 0.97, "sign": -1}
            result["told_by"]["skill_tokens"]["area"] = 0.6
        return result

    makers = (typology.composition, typology.mass, typology.instances, typology.loss)
    before = [make()[3] for make in makers]
    monkeypatch.setattr(typology, "load_result", changed)
    after = [make()[3] for make in makers]
    assert all(a != b for a, b in zip(before, after)), (before, after)
    assert after[1:] == [typology.CANNOT, typology.CANNOT, typology.HOLDS]


def test_sources_are_results():
    for make in (typology.metric, typology.composition, typology.mass, typology.instances, typology.loss):
        row = make()
        assert len(row) == 5 and (ROOT / "benchmarks" / "results" / row[4].strip("`")).is_file()
