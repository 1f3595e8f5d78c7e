"""What the ranks tell each other beside the collectives: heartbeats and the verdict, in the store of the process group.

The store answers whoever reaches its port. So every value carries an HMAC with a secret that rank 0 makes at each start and
sends over the process group, not over the store: who writes to the store cannot make up a verdict, a rank's last words or a sign
of life. He can still take the store away, or overwrite heartbeats, and the run then ends as if a process were lost. The
secret goes over the network as gloo's traffic does, in the clear.
"""

import hashlib
import hmac
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch.distributed as dist

from emergence_train.errors import PeerLost

DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True)
class PeerVerdict:
    """Why the run ends on every rank."""

    text: str
    code: int = PeerLost.code  # that every process ends with
    hang: bool = False  # the ranks wait for each other: their stacks say where


class Heartbeats:
    """`store` is a connection that nothing else uses; `launch` a name that these processes alone have in it."""

    def __init__(self, store: dist.Store, launch: str, secret: bytes, rank: int) -> None:
        self.store, self.prefix, self.secret, self.rank = store, f"emergence-train/{launch}/", secret, rank
        self.complete: set[str] = set()  # keys known to be there

    def beat(self, signs: dict[int, dict[str, Any]]) -> None:
        """This rank's heartbeat, and those that it passes on, by rank; its `n` grows, but for the last one's, -1."""
        self._set(str(self.rank), signs)

    def read(self, ranks: Iterable[int]) -> tuple[dict[int, dict[str, Any]], PeerVerdict | None]:
        """What `ranks` have written, by rank, without those that gave no sign yet, and the verdict if there is one; in one
        request."""
        values_by_name = self._get([str(rank) for rank in ranks] + ["verdict"])
        verdict = values_by_name.pop("verdict", None)
        signs = {int(rank): sign for signs in values_by_name.values() for rank, sign in signs.items()}
        return signs, PeerVerdict(**verdict) if verdict else None

    def publish(self, verdict: PeerVerdict | None) -> None:
        """The verdict of who holds the store; None at the start, so that reading need not wait for it."""
        self._set("verdict", asdict(verdict) if verdict else None)

    def acknowledge(self) -> None:
        """This rank ends, and needs the store no more."""
        self.store.add(f"{self.prefix}acknowledged", 1)

    def acknowledged(self) -> int:
        """How many ranks have said so."""
        return self.store.add(f"{self.prefix}acknowledged", 0)

    def first_to_report(self) -> bool:
        """Whether this rank is the one to put the verdict on the screen."""
        return self.store.add(f"{self.prefix}reported", 1) == 1

    def _set(self, name: str, content: Any) -> None:
        payload = json.dumps(content).encode()
        self.store.set(self.prefix + name, self._sign(name, payload) + payload)  # type: ignore[arg-type]

    def _get(self, names: list[str]) -> dict[str, Any]:
        if not self.complete.issuperset(names):  # multi_get waits for a key that is not there
            if self.store.check([self.prefix + name for name in names]):
                self.complete.update(names)
            else:
                names = [name for name in names if self.store.check([self.prefix + name])]
        values = self.store.multi_get([self.prefix + name for name in names]) if names else []
        values_by_name = {}
        for name, value in zip(names, values):
            if hmac.compare_digest(value[:DIGEST], self._sign(name, value[DIGEST:])):
                values_by_name[name] = json.loads(value[DIGEST:])
        return values_by_name

    def _sign(self, name: str, payload: bytes) -> bytes:
        return hmac.digest(self.secret, f"{self.prefix}{name}\n".encode() + payload, "sha256")
