"""End all ranks in bounded time when a process is killed, stopped or hangs, with one line that names it.

A thread of each rank writes a heartbeat to the store of the process group every second: how many operations its main
thread has started, the current one, and its duration. Rank 0 reads all heartbeats and publishes a verdict; the others
read the verdict, and rank 0's heartbeat, since rank 0 may be the lost one. Work is proportional to the number of ranks.

- No heartbeat for `silent_seconds`: the process was killed or stopped.
- Every rank in one operation for `hang_seconds`: the rank that has started the fewest operations is waited for.
- A rank that ends with an error publishes it, and the others report it instead of "connection closed by peer".

Each rank also writes torch's record of its last collectives (flight_recorder.py).

A single process has no peers and no watchdog.
"""

import datetime
import faulthandler
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from emergence_train.errors import InputError, PeerLost, RunError, Stopped, tell
from emergence_train.faults import flight_recorder
from emergence_train.faults.flight_recorder import STACKS
from emergence_train.parallel.mesh import Mesh
from emergence_train.parallel.ranks import is_communication_error

AGAIN = "run the same command to resume from the last checkpoint"
ALARMED_SECONDS = 5.0  # seconds without a heartbeat that suffice once a connection is broken
MAIN_SECONDS = 2.0  # seconds for the main thread to exit by itself after a verdict


class Watchdog:
    """`at(operation, step)` is called by the main thread of every rank at the start of each operation; its cost is negligible."""

    def __init__(self, mesh: Mesh, run: Path, silent_seconds: float, hang_seconds: float) -> None:
        self.mesh, self.run = mesh, run
        self.silent, self.hang = silent_seconds, hang_seconds
        self.interval = min(1.0, silent_seconds / 5)
        self.place = (0, "starting", 0, time.monotonic())
        self.verdict: str | None = None
        self.decided, self.ending = threading.Event(), threading.Event()
        self.last_words: str | None = None
        self.stored = True  # the store can be used
        self.alarmed = False  # a connection broke: a rank without a heartbeat now is lost
        self.thread = None
        if mesh.world.size > 1:
            # A connection of its own: the main thread may be waiting on the other.
            self.store = dist.TCPStore(
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                is_master=False,
                timeout=datetime.timedelta(seconds=max(silent_seconds, 2.0)),
            )
            # A store may outlive its processes (torchrun's does), so keys carry the name of this start.
            self.prefix = f"emergence-train/{mesh.launch_id}/"
            self.began = time.monotonic()
            self._beat(0)
            self.answered = time.monotonic()  # by the store
            self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self.thread.start()
            threading.Thread(target=self._guard, name="watchdog-guard", daemon=True).start()

    def at(self, operation: str, step: int = 0) -> None:
        """Record that the main thread starts an operation."""
        self.place = (self.place[0] + 1, operation, step, time.monotonic())

    def explain(self, error: Exception, stop_requested: Callable[[], bool]) -> Exception:
        """The exception to raise for an error of this rank: the error itself, or the PeerLost that caused it.

        `stop_requested`: whether this process received a signal to stop. A launcher that has lost a process stops the others, and
        must not be kept waiting for the name of a process it knows.
        """
        if self.thread is None:
            return error
        if isinstance(error, (InputError, RunError, Stopped)):
            self._say_goodbye(None if error.already_reported is not None else str(error))
            return error
        # For "connection closed by peer" and the like the watchdog soon names the peer; other errors are this rank's own.
        if is_communication_error(error):
            self.alarmed = True
            until = time.monotonic() + self.silent + 4 * self.interval + MAIN_SECONDS + flight_recorder.SECONDS
            while not self.decided.wait(self.interval) and time.monotonic() < until:
                if stop_requested():
                    self.verdict = f"another process is lost ({' '.join(str(error).split())[:120]})"
                    break
        if self.verdict:
            self.ending.set()
            lost = PeerLost(f"{self.verdict}; {AGAIN}")
            lost.already_reported = not self._first_to_report()
            self._outlast()
            return lost
        self._say_goodbye(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return error

    def close(self) -> None:
        """Stop the watchdog; the other ranks no longer expect heartbeats of this rank."""
        if self.thread is not None and not self.ending.is_set():
            self._say_goodbye(None)

    def _say_goodbye(self, words: str | None) -> None:
        self.last_words = words
        self.ending.set()
        if self.thread is not None:
            self.thread.join(min(self.silent, ALARMED_SECONDS))

    # ------------------------------------------------------------------------------------------ the thread's own

    def _watch(self) -> None:
        number, seen = 1, dict[int, dict]()
        try:
            while not self.ending.wait(self.interval):
                self._beat(number)
                verdict = self._look(seen)
                self.answered = time.monotonic()
                if verdict:
                    self._end(verdict)
                    return
                number += 1
            if self.stored and not self.decided.is_set():
                self._beat(-1, self.last_words)  # the last heartbeat: an orderly exit
        except Exception as error:  # the store ended with the process that hosted it
            if not self.ending.is_set():
                reason = " ".join(str(error).split())[:120]
                self._end(f"rank 0 or its launcher is lost ({type(error).__name__}: {reason}); {self._own_place()}")

    def _guard(self) -> None:
        """End the process where the store does not answer: the process that hosts it may be stopped, and torch waits for ever."""
        while not self.ending.wait(self.interval) and not self.decided.is_set():
            silent = time.monotonic() - self.answered
            if silent > self.silent:
                self._end(
                    f"rank 0 or its launcher, which hosts the store, has not answered for {silent:.0f} s; "
                    f"{self._own_place()}",
                    store=False,
                )

    def _beat(self, number: int, words: str | None = None) -> None:
        operations, operation, step, since = self.place
        sign = {"n": number, "ops": operations, "op": operation, "step": step, "for": time.monotonic() - since}
        if number in (0, -1):
            sign |= {"host": socket.gethostname(), "pid": os.getpid(), "words": words}
        self.store.set(f"{self.prefix}{self.mesh.world.rank}", json.dumps(sign))

    def _look(self, seen: dict) -> str | None:
        """The verdict, or None. `seen` has the last heartbeat of each rank and its time."""
        if not self.mesh.is_rank0 and self.store.check([f"{self.prefix}verdict"]):
            return self.store.get(f"{self.prefix}verdict").decode()
        watched = range(self.mesh.world.size) if self.mesh.is_rank0 else (0, self.mesh.world.rank)
        keys = [f"{self.prefix}{rank}" for rank in watched]
        now = time.monotonic()
        if not self.store.check(keys):  # all have joined, but not all have sent a first heartbeat
            absent = next((rank for rank, key in zip(watched, keys) if not self.store.check([key])), None)
            late = absent is not None and now - self.began > self.silent
            return self._publish(f"rank {absent} has joined and sent no heartbeat since") if late else None
        for rank, text in zip(watched, self.store.multi_get(keys)):
            sign = json.loads(text)
            old = seen.get(rank)
            if old is None or old["n"] != sign["n"]:
                seen[rank] = {"host": None, "pid": None, **(old or {}), **sign, "came": now}
        return self._publish(self._judge(seen, now))

    def _publish(self, verdict: str | None) -> str | None:
        """Publish rank 0's verdict to all ranks."""
        if verdict and self.mesh.is_rank0:
            self.store.set(f"{self.prefix}verdict", verdict)
        return verdict

    def _judge(self, seen: dict, now: float) -> str | None:
        for rank, sign in seen.items():
            name = f"rank {rank}"
            if sign["n"] == -1:
                if sign["words"]:
                    return f"{name} (process {sign['pid']} on {sign['host']}) ended: {sign['words']}"
                continue
            silent = now - sign["came"]
            if silent > (min(self.silent, ALARMED_SECONDS) if self.alarmed else self.silent):
                return f"{name} has sent no heartbeat for {silent:.0f} s, killed or stopped; {_place(sign)}"
        present = {rank: sign for rank, sign in seen.items() if sign["n"] != -1}
        if self.mesh.is_rank0 and present and min(sign["for"] for sign in present.values()) > self.hang:
            rank, sign = min(present.items(), key=lambda item: item[1]["ops"])
            behind = sum(other["ops"] > sign["ops"] for other in present.values())
            who = f"rank {rank} is waited for by {behind} others" if behind else "every rank waits"
            return (
                f"nothing has moved for {sign['for']:.0f} s, {who}; {_place(sign)}; stacks are in {self.run / STACKS}"
            )
        return None

    def _end(self, verdict: str, *, store: bool = True) -> None:
        """Let the main thread raise the verdict; where it hangs in a collective, end the process from this thread."""
        if "stacks are in" in verdict:
            self._dump()
        record = flight_recorder.write(self.run, self.mesh.world.rank, self.mesh.device.type == "cuda")
        self.verdict = verdict = verdict if record is None else f"{verdict}; the last collectives are in {record}"
        self.stored = store
        self.decided.set()
        if self.ending.wait(MAIN_SECONDS):
            return
        if self._first_to_report():
            tell(f"{verdict}; {AGAIN}")
        self._outlast()
        os._exit(PeerLost.code)

    def _first_to_report(self) -> bool:
        """Whether this rank is the first to print the verdict."""
        try:
            if not self.stored:
                return self.mesh.world.rank == 1
            return self.store.add(f"{self.prefix}reported", 1) == 1
        except Exception:
            return self.mesh.world.rank == 1  # the store is lost: rank 0 hosted it

    def _outlast(self) -> None:
        """Delay rank 0, which often hosts the store, until the others have read the verdict."""
        if self.mesh.is_rank0:
            time.sleep(3 * self.interval)

    def _dump(self) -> None:
        try:
            (self.run / STACKS).mkdir(exist_ok=True)
            with open(self.run / STACKS / f"rank-{self.mesh.world.rank}.txt", "w") as file:
                faulthandler.dump_traceback(file)
        except OSError:
            pass  # a full disk must not keep the process from exiting

    def _own_place(self) -> str:
        _, operation, step, since = self.place
        return f"rank {self.mesh.world.rank} was {time.monotonic() - since:.0f} s in {operation!r} of step {step}"


def _place(sign: dict) -> str:
    return f"its last operation was {sign['op']!r} of step {sign['step']}"
