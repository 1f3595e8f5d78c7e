"""Processes of the framework forked from one that has imported everything: a start costs a tenth of a fresh one's CPU time.

Run as a script it is the server. It imports what training imports and computes nothing, so that a fork of it is equivalent to
a fresh interpreter. It reads one JSON line per request from standard input, forks the processes it names and answers with
their exit codes. `run` is the client: one server a test process, started by the first request. The server has faults/disk_shim.c
preloaded, where it can be compiled; it is inert until a test starts it.
"""

import atexit
import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from faults import disk

ROOT = Path(__file__).parents[1]
_lock = threading.Lock()
_servers: list[subprocess.Popen] = []


def run(
    targets: list[list[str]], environments: list[dict[str, str]], timeout: float
) -> list[subprocess.CompletedProcess]:
    """Run several processes at once, each with a target and an environment of its own.

    Args:
        targets: of each process ["-m", module, arguments...] or [script, arguments...].
        environments: of each process all its variables.
        timeout: seconds for all of them to end.

    Returns:
        One CompletedProcess each; a negative exit code is a signal's number.

    Raises:
        subprocess.TimeoutExpired: not all have ended in time; they are killed.
    """
    with tempfile.TemporaryDirectory() as folder, _lock:
        outputs = [(f"{folder}/{rank}.out", f"{folder}/{rank}.err") for rank in range(len(targets))]
        server = _server()
        request = {
            "targets": targets,
            "environments": environments,
            "outputs": outputs,
            "cwd": os.getcwd(),
            "timeout": timeout,
        }
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        if not answer:
            raise RuntimeError(f"the fork server ended with code {server.wait()}")
        texts = [[Path(path).read_text(errors="replace") for path in pair] for pair in outputs]
    codes = json.loads(answer)
    if None in codes:
        raise subprocess.TimeoutExpired(targets[0], timeout, *("".join(text) for text in zip(*texts)))
    return [subprocess.CompletedProcess(target, code, *text) for target, code, text in zip(targets, codes, texts)]


def _server() -> subprocess.Popen:
    if not _servers:
        paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        if shim := disk.library():
            environment["LD_PRELOAD"] = f"{environment.get('LD_PRELOAD', '')} {shim}".strip()
        server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )
        atexit.register(_end, server)
        _servers.append(server)
    return _servers[0]


def _end(server: subprocess.Popen) -> None:
    server.stdin.close()
    try:
        server.wait(60)
    except subprocess.TimeoutExpired:
        server.kill()


# ---- the server ------------------------------------------------------------------------------------------------------


def serve() -> None:
    """Answer requests until standard input ends."""
    import faults.launch  # noqa: F401 - imports everything

    gc.freeze()  # so that no child looks through, and copies, what was imported
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        pids = [_fork(request, rank, answers) for rank in range(len(request["targets"]))]
        answers.write(json.dumps(_wait(pids, request["timeout"])) + "\n")


def _fork(request: dict, rank: int, answers) -> int:
    if pid := os.fork():
        return pid
    code = 70
    try:
        os.setsid()
        answers.close()
        for number, path in enumerate((os.devnull, *request["outputs"][rank])):
            opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            os.dup2(opened, number)
            os.close(opened)
        sys.stdin, sys.stdout, sys.stderr = (
            open(number, "w" if number else "r", buffering=1, closefd=False)  # noqa: SIM115
            for number in range(3)
        )
        os.environ.clear()
        os.environ.update(request["environments"][rank])
        os.chdir(request["cwd"])
        code = _execute(request["targets"][rank])
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _execute(target: list[str]) -> int:
    """As the interpreter does it -> the exit code."""
    import runpy
    import traceback

    try:
        if target[0] == "-m":
            sys.argv = target[1:]
            runpy.run_module(target[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(target)
            sys.path.insert(0, str(Path(target[0]).parent))
            runpy.run_path(target[0], run_name="__main__")
        return 0
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1


def _wait(pids: list[int], seconds: float) -> list[int | None]:
    """-> exit codes, None of one that had to be killed."""
    until, codes = time.monotonic() + seconds, dict.fromkeys(pids)
    left = set(pids)
    while left:
        for pid in list(left):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                left.remove(pid)
                codes[pid] = os.waitstatus_to_exitcode(status)
        if left and time.monotonic() > until:
            for pid in left:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            break
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


if __name__ == "__main__":
    serve()
    os._exit(0)  # nothing to clean up
