"""The starts of a run in its environment.json: which process began it, how it ended, and whether that process still lives."""

import datetime
import json
import os
import socket
from pathlib import Path
from typing import Any

from emergence_train import files
from emergence_train.errors import InputError
from emergence_train.input_files import read_text

FILE = "environment.json"


def read_sessions(run: Path) -> list[dict]:
    """The starts of the run, oldest first; none where the file is not there or not ours."""
    try:
        sessions = json.loads(read_text(run / FILE))["sessions"]
    except (InputError, OSError, ValueError, KeyError, TypeError):
        return []
    return [session for session in sessions if isinstance(session, dict)] if isinstance(sessions, list) else []


def add_session(run: Path, session: dict[str, Any]) -> None:
    """Add a start by this process."""
    files.write_json(run / FILE, {"sessions": [*read_sessions(run), own_process() | session]})


def end_session(run: Path, code: int, reason: str) -> None:
    """Write down how the start by this process ended: nothing where it began none, or has ended."""
    sessions = read_sessions(run)
    own = own_process()
    if not sessions or "ended" in sessions[-1] or any(sessions[-1].get(key) != own[key] for key in own):
        return
    sessions[-1] |= {"ended": now(), "exit_code": code, "reason": reason}
    files.write_json(run / FILE, {"sessions": sessions})


def own_process() -> dict[str, Any]:
    return name_process(os.getpid())


def name_process(pid: int) -> dict[str, Any]:
    """What names a process of this machine: a number is used again, by another that began at another time."""
    return {"host": socket.gethostname(), "pid": pid, "process_began": _began(pid)}


def alive(session: dict[str, Any]) -> bool | None:
    """Whether the process of a start lives; None where this machine cannot know."""
    pid = session.get("pid")
    if session.get("host") != socket.gethostname() or not isinstance(pid, int) or os.name != "posix":
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return session.get("process_began") == _began(pid)


def _began(pid: int) -> int | None:
    """When a process began, in ticks since the machine did; None where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
        return None if status.rpartition(")")[2].split()[0] == "Z" else int(status.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
