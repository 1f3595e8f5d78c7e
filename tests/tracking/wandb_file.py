"""What a .wandb file holds, read without the client: LevelDB's log format around protocol buffers."""

import json
import struct
from pathlib import Path

HEADER, BLOCK = 7, 1 << 15
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> list:
    """The records of a file, in order; of one that was cut off those that are whole."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, partial, found_records = path.read_bytes(), HEADER, b"", []
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        piece = data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        partial = piece if kind in (FULL, FIRST) else partial + piece
        if kind in (FULL, LAST) and length:
            record = Record()
            record.ParseFromString(partial)
            found_records.append(record)
    return found_records


class OfflineRun:
    """The only offline directory of a run: its history, axes and settings."""

    def __init__(self, run: Path) -> None:
        (path,) = (run / "wandb").glob("offline-run-*/*.wandb")
        self.records = records(path)
        self.run = next(record.run for record in self.records if record.HasField("run"))

    def history(self) -> list[dict]:
        rows = []
        for record in self.records:
            if record.HasField("history"):
                row = {}
                for item in record.history.item:
                    row["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
                rows.append(row)
        return rows

    def values(self, name: str) -> dict[int, float]:
        """{tokens: value} of a name."""
        return {row["tokens"]: row[name] for row in self.history() if name in row}

    def axes(self) -> dict[str, str]:
        """{name or glob: the metric that it is drawn against}."""
        metrics = [record.metric for record in self.records if record.HasField("metric")]
        return {metric.glob_name or metric.name: metric.step_metric for metric in metrics}

    def statistics(self) -> int:
        """How often the machine's use was sent."""
        return sum(record.HasField("stats") for record in self.records)

    def summary(self) -> dict:
        """The last value of each key of the run's summary."""
        values = {}
        for record in self.records:
            if record.HasField("summary"):
                for item in record.summary.update:
                    values["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        return values

    def artifacts(self) -> list[tuple[dict, list[str], list[str]]]:
        """(metadata, aliases, what its entries refer to) of each artifact."""
        logged = [record.artifact for record in self.records if record.HasField("artifact")]
        return [
            (json.loads(each.metadata), list(each.aliases), sorted(entry.ref for entry in each.manifest.contents))
            for each in logged
            if each.type == "checkpoint"
        ]
