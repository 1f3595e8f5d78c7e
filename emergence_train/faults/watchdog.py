"""A process that is killed, stopped, hangs or fails ends the others in bounded time, with one line that names it.

A thread of each rank writes a heartbeat to the store of the process group every second: how many operations its
main thread has begun, which, for how long it has been in it, and now and then what all of them took. Rank 0 reads everyone's
and publishes a verdict; the others read the verdict, and rank 0's sign, since it may be rank 0 that is gone. Above one node the
ranks of each do this with its first rank, the leader, which passes their signs on (relay.py).

- No sign for `silent_seconds`: the process is gone or stopped.
- Every rank in one operation for longer than its limit (operations.hang_limit): the one that has begun the fewest is waited for.
- A rank that ends with an error says so, and the others end with the same exit code instead of "connection closed by peer".
- A rank that the others wait for again and again is a straggler: no reason to end, but a row in metrics.jsonl.

Each rank also leaves torch's record of its last collectives (flight_recorder.py). Nothing that the threads do imports a module:
the main thread may be in the middle of importing it.

A single process has no peers and no watchdog.
"""

import collections
import contextlib
import datetime
import faulthandler
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from emergence_train.errors import PeerLost, describe, exit_code, repeat, tell
from emergence_train.faults import flight_recorder, report_claim
from emergence_train.faults.flight_recorder import STACKS
from emergence_train.faults.heartbeats import PeerVerdict
from emergence_train.faults.operations import Operations, Straggler, hang_limit, stragglers
from emergence_train.faults.relay import Relay
from emergence_train.parallel.mesh import Mesh
from emergence_train.parallel.ranks import is_communication_error

AGAIN = "run the same command to resume from the last saved state"
ALARMED_SECONDS = 5.0  # of silence that are enough once a connection has broken
MAIN_SECONDS = 2.0  # for the main thread to end by itself once there is a verdict
TIMES_EVERY = 8  # heartbeats: what the operations took is most of one's bytes
COMPARE_SECONDS = 60.0  # between looks for ranks that the others wait for


class Watchdog:
    """`at(operation, step)` is called by the main thread at each operation, by all ranks alike, and costs next to nothing."""

    def __init__(
        self, mesh: Mesh, run: Path, silent_seconds: float, hang_seconds: float, *, again: str = AGAIN
    ) -> None:
        """`again`: what to do after a loss."""
        self.mesh, self.run, self.again = mesh, run, again
        self.silent, self.hang = silent_seconds, hang_seconds
        self.interval = min(1.0, silent_seconds / 5)
        self.operations = Operations()
        self.verdict: PeerVerdict | None = None
        self.decided, self.ending = threading.Event(), threading.Event()
        self.on_end: Callable[[str, int], None] = lambda words, code: None  # before the process is ended from here
        self.last_words: tuple[str | None, int] = (None, 0)  # and the exit code
        self.stored = True  # there is a store to agree over
        self.alarmed = False  # a connection broke: who is silent now is gone
        self.seen: dict[int, dict] = {}  # of each rank its last sign and when it came
        self.compared: tuple[float, dict] = (time.monotonic(), {})  # when, and everyone's times then
        self.new_stragglers: collections.deque[Straggler] = collections.deque(maxlen=100)
        self.thread = None
        if mesh.world.size > 1:
            self.relay = Relay(mesh, datetime.timedelta(seconds=max(silent_seconds, 2.0)))
            self.began = time.monotonic()
            self._beat(0)
            self.answered = time.monotonic()  # by the store
            self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self.thread.start()
            threading.Thread(target=self._guard, name="watchdog-guard", daemon=True).start()

    def at(self, operation: str, step: int = 0) -> None:
        """The main thread begins an operation, or raises what the ranks have agreed on: one that was stopped and goes on would
        else let it train on while the others end."""
        if self.verdict is not None and not self.ending.is_set():
            raise PeerLost(self._line(self.verdict))
        self.operations.begin(operation, step)

    def stragglers(self) -> list[Straggler]:
        """Ranks seen to be slow since the last call; rank 0 knows."""
        return [self.new_stragglers.popleft() for _ in range(len(self.new_stragglers))]

    def explain(self, error: BaseException, stop_requested: Callable[[], bool]) -> BaseException:
        """What to raise for an error of this rank: itself, or what has ended the peer that caused it.

        `stop_requested`: whether this process received a signal to stop. A launcher that has lost a process stops the others, and
        must not be kept waiting for the name of a process it knows.
        """
        if self.thread is None:
            return error
        if getattr(error, "already_reported", None) is not None:  # every rank raises it
            self._say_goodbye(None)
            return error
        # For "connection closed by peer" and the like the watchdog soon names the peer; other errors are this rank's own.
        if is_communication_error(error):
            self.alarmed = True
            until = time.monotonic() + self.silent + 6 * self.interval + MAIN_SECONDS + flight_recorder.SECONDS
            while not self.decided.wait(self.interval) and time.monotonic() < until:
                if stop_requested():
                    self.verdict = PeerVerdict(f"another process is gone ({' '.join(str(error).split())[:120]})")
                    break
        if self.verdict:
            self.ending.set()
            reported = not self._first_to_report()
            ended = repeat(self.verdict.code, self._line(self.verdict))
            ended.already_reported = reported
            self._outlast()
            return ended
        self._say_goodbye(describe(error), exit_code(error))
        return error

    def leave(self, words: str, code: int) -> None:
        """This process ends now with `code`, from whichever thread, and so do the others."""
        if self.thread is not None and not self.ending.is_set():
            self._say_goodbye(words, code)

    def close(self) -> None:
        """Stop the watchdog; the other ranks no longer expect heartbeats of this rank."""
        if self.thread is not None and not self.ending.is_set():
            self._say_goodbye(None)

    def _say_goodbye(self, words: str | None, code: int = 0) -> None:
        self.last_words = (words, code)
        self.ending.set()
        if self.thread is not None:
            self.thread.join(min(self.silent, ALARMED_SECONDS))
        if words is not None:
            self._outlast()

    # ------------------------------------------------------------------------------------------ the thread's own

    def _watch(self) -> None:
        number = 1
        while not self.ending.wait(self.interval):
            if verdict := self._turn(number):
                self._end(verdict)
                return
            number += 1
        with contextlib.suppress(Exception):  # nobody may be left to be told
            if self.stored and not self.decided.is_set():
                self._beat(-1)  # the last: it ends in order
                if self.last_words[0] is not None:
                    self.relay.acknowledge()

    def _turn(self, number: int) -> PeerVerdict | None:
        """A heartbeat, and a look for a verdict."""
        try:
            self._beat(number)
            verdict = self._look()
        except Exception as error:  # the store has gone with the process that held it
            if self.ending.is_set():
                return None
            reason = " ".join(str(error).split())[:120]
            gone = f"{self.relay.holder} is gone ({type(error).__name__}: {reason}); {self._own_place()}"
            return self._pass_on(PeerVerdict(gone))
        self.answered = time.monotonic()
        return verdict

    def _guard(self) -> None:
        """End the process where the store does not answer: the process that hosts it may be stopped, and torch waits for ever."""
        while not self.ending.wait(self.interval) and not self.decided.is_set():
            if verdict := self._unanswered():
                self.stored = False
                self._end(verdict)

    def _unanswered(self) -> PeerVerdict | None:
        """A verdict where the store has been silent for too long."""
        silent = time.monotonic() - self.answered
        if silent <= self.silent:
            return None
        return self._pass_on(
            PeerVerdict(f"{self.relay.holder} has not answered for {silent:.0f} s; {self._own_place()}")
        )

    def _pass_on(self, verdict: PeerVerdict) -> PeerVerdict:
        """The store above is lost: a leader tells the ranks of its node, who would otherwise miss the leader and name it."""
        with contextlib.suppress(Exception):
            if self.relay.down:
                self.relay.publish(verdict)
        return verdict

    def _beat(self, number: int) -> None:
        words, code = self.last_words
        sign = {"n": number, **self.operations.sign()}
        if number % TIMES_EVERY == 0:
            sign["times"] = self.operations.times.copy()
        if number in (0, -1):
            sign |= {"host": socket.gethostname(), "pid": os.getpid(), "words": words, "code": code}
        self.relay.beat(sign)

    def _look(self) -> PeerVerdict | None:
        """A verdict, if there is one."""
        now = time.monotonic()
        signs, verdict = self.relay.read()
        if verdict:
            return verdict
        for rank, sign in signs.items():
            old = self.seen.get(rank)
            if old is None or (old["n"] != -1 and (sign["n"] == -1 or sign["n"] > old["n"])):
                self.seen[rank] = {"host": None, "pid": None, "times": {}, **(old or {}), **sign, "came": now}
        absent = next((rank for rank in self.relay.watched if rank not in self.seen), None)
        if absent is not None:  # all have joined, but not everyone has given a first sign
            late = now - self.began > self.silent
            return self._publish(PeerVerdict(f"rank {absent} has joined and sent no heartbeat since")) if late else None
        if self.mesh.is_rank0 and now - self.compared[0] > COMPARE_SECONDS:
            self._compare(now)
        return self._publish(self._judge(now))

    def _publish(self, verdict: PeerVerdict | None) -> PeerVerdict | None:
        if verdict:
            self.relay.publish(verdict)
        return verdict

    def _compare(self, now: float) -> None:
        times = {rank: sign["times"] for rank, sign in self.seen.items()}
        if self.compared[1]:
            self.new_stragglers.extend(stragglers(self.compared[1], times))
        self.compared = (now, times)

    def _judge(self, now: float) -> PeerVerdict | None:
        for rank, sign in self.seen.items():
            if sign["n"] == -1 and sign["words"]:
                name = f"rank {rank} (process {sign['pid']} on {sign['host']})"
                return PeerVerdict(f"{name} ended: {sign['words']}", sign["code"])
        present = {rank: sign for rank, sign in self.seen.items() if sign["n"] != -1}
        limit = min(self.silent, ALARMED_SECONDS) if self.alarmed else self.silent
        for rank in present:
            leader = self.relay.leader_of[rank] if self.mesh.is_rank0 else rank
            if now - present[rank]["came"] > limit and leader in present:  # else its leader has ended in order
                if now - present[leader]["came"] > limit - 3 * self.interval:
                    rank = leader  # of it alone is anything known
                sign = present[rank]
                silent = now - sign["came"]
                return PeerVerdict(
                    f"rank {rank} has sent no heartbeat for {silent:.0f} s, killed or stopped; {_place(sign)}"
                )
        if self.mesh.is_rank0 and present and all(sign["for"] > self._limit(sign) for sign in present.values()):
            rank, sign = min(present.items(), key=lambda item: item[1]["ops"])
            behind = sum(other["ops"] > sign["ops"] for other in present.values())
            who = f"rank {rank} is waited for by {behind} others" if behind else "every rank waits"
            return PeerVerdict(
                f"nothing has moved for {sign['for']:.0f} s, {who}; {_place(sign)}; stacks are in {self.run / STACKS}",
                hang=True,
            )
        return None

    def _limit(self, sign: dict) -> float:
        return hang_limit(sign["times"].get(sign["op"]), self.hang)

    def _end(self, verdict: PeerVerdict) -> None:
        """Let the main thread raise it; where that hangs in a collective, end the process from here."""
        if verdict.hang:
            self._dump()
        if verdict.code == PeerLost.code:
            record = flight_recorder.write(self.run, self.mesh.world.rank, self.mesh.device.type == "cuda")
            if record is not None:
                verdict = PeerVerdict(
                    f"{verdict.text}; the last collectives are in {record}", verdict.code, verdict.hang
                )
        self.verdict = verdict
        self.decided.set()
        if self.ending.wait(MAIN_SECONDS):
            return
        if self._first_to_report():
            tell(self._line(verdict))
        self.on_end(self._line(verdict), verdict.code)
        self._outlast()
        os._exit(verdict.code)

    def _first_to_report(self) -> bool:
        """One line on the screen is enough. The last that this rank asks of the store, unless it is rank 0."""
        try:
            if self.stored:
                first = self.relay.first_to_report()
                self.relay.acknowledge()
                if first:  # for a rank that was stopped, and wakes up when the store is gone
                    report_claim.claim(self.run, self.mesh.launch_id, self.mesh.world.rank, True)
                return first
        except Exception:
            self.stored = False
        if not self.relay.speaks():
            return False
        rank = self.mesh.world.rank
        return report_claim.claim(self.run, self.mesh.launch_id, rank, rank in self.relay.fallbacks)

    def _outlast(self) -> None:
        """Rank 0 often holds the store: the others are to read the verdict, or its last words, before it goes; likewise the ranks
        of a leader's node."""
        until = time.monotonic() + 6 * self.interval + MAIN_SECONDS
        while (self.stored or self.relay.down) and time.monotonic() < until:
            try:
                if not self.relay.needed():
                    return
            except Exception:
                self.stored = False
            time.sleep(0.05)

    def _dump(self) -> None:
        try:
            (self.run / STACKS).mkdir(exist_ok=True)
            with open(self.run / STACKS / f"rank-{self.mesh.world.rank}.txt", "w") as file:
                faulthandler.dump_traceback(file)
        except OSError:
            pass  # a full disk must not keep the process from exiting

    def _line(self, verdict: PeerVerdict) -> str:
        """What the screen shows: a rank's own words say what to do."""
        return f"{verdict.text}; {self.again}" if verdict.code == PeerLost.code else verdict.text

    def _own_place(self) -> str:
        own = self.operations.sign()
        return f"rank {self.mesh.world.rank} was {own['for']:.0f} s in {own['op']!r} of step {own['step']}"


def _place(sign: dict) -> str:
    return f"its last operation was {sign['op']!r} of step {sign['step']}"
