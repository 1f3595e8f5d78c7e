"""`report --serve`: the page over HTTP on this machine alone, made again when the runs' files change; it reloads itself."""

import errno
import hashlib
import html
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from emergence_train.errors import InputError, attempt, describe
from emergence_train.recorder.naming import is_run
from emergence_train.report import page
from emergence_train.report.collect import NotYet, ReportData, Run, load_run
from emergence_train.report.reading import Reading

ADDRESS = "127.0.0.1"
HOSTS = ("127.0.0.1", "localhost")  # a page elsewhere whose name was made to lead here is not answered
LOOK_SECONDS = 1.0  # between two looks at the files
CLIENT_SECONDS = 30.0  # that a client may be silent
LEAST_SECONDS = 3.0  # between two pages; also as long as the last one took, so that half a CPU stays free
PARTS = ("config.yaml", "metrics.jsonl", "positions/*", "evaluations/*")  # of a run, what the page shows
FILES = frozenset(  # what the name of a file ends in; that of a run may have a point too
    (
        *(".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".md", ".txt", ".tex", ".dat", ".yaml", ".yml"),
        *(".log", ".out", ".err", ".wandb", ".gz", ".bz2", ".zst", ".xz", ".lz4", ".zip", ".html"),
    )
)
NOT_BEGUN = "no run has begun there yet; waiting for its first line (if it is elsewhere, name its directory)"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; connect-src 'self'"


class RunsRead:
    """load_run that reads and fits a run again only where its files have changed: finished runs beside a running one stay."""

    def __init__(self) -> None:
        self._runs: dict[Path, tuple[tuple, Run]] = {}

    def __call__(self, directory: Path, name: str) -> Run:
        state = (name, *stamps([directory]))
        held = self._runs.get(directory)
        if held is None or held[0] != state:
            held = self._runs[directory] = state, load_run(directory, name)
        return held[1]


class LivePage:
    """The newest page of `paths` and its version; `update` makes it again where a file has changed.

    Runs that have not begun, or have no checkpoint yet, are left out until they have. While there is nothing to show yet, the
    page says why and waits.
    A page that is there stays when a later one fails.
    """

    def __init__(self, paths: list[Path], reading: Reading, log: Callable[[str], None]) -> None:
        self.paths, self.reading, self.log = paths, reading, log
        self.text, self.version = b"", ""
        self._files: tuple | None = None
        self._load = RunsRead()
        self._problem = ""

    def update(self) -> bool:
        """Look at the files; returns whether there is another page now."""
        before = self.version
        try:
            files = tuple(stamps(self.paths))
            if files == self._files:
                return False
            self._files = files
            data, waiting = self._begun()
            self._show(page.page(data, "@"))
            self._say(f"left out so far: {'; '.join(waiting)}" if waiting else "")
        except Exception as error:  # a file that is being written, or none yet: later ones may do
            self._fail(error)
            # The machine's or a network disk's: no file need change
            if isinstance(error.__context__ or error, OSError):
                self._files = None
        return self.version != before

    def _begun(self) -> tuple[ReportData, list[str]]:
        """What can be shown of the paths, and why the others cannot yet. Raises InputError where none can."""
        begun = [path for path in self.paths if not not_begun(path)]
        waiting = [f"{path}: {NOT_BEGUN}" for path in self.paths if path not in begun]
        while begun:
            try:
                return page.collected(begun, self.reading, self._load), waiting
            except NotYet as error:
                begun.remove(error.directory)
                waiting.append(str(error))
        raise InputError("; ".join(waiting))

    def _say(self, text: str) -> None:
        """Log what keeps the page from being whole, once."""
        if text and text != self._problem:
            self.log(text)
        self._problem = text

    def _fail(self, error: Exception) -> None:
        problem = str(error) if isinstance(error, InputError) else describe(error)
        self._say(f"no new page: {problem}")
        if not self.text or b'id="waiting"' in self.text:
            names = ", ".join(path.name for path in self.paths)
            self._show(
                page.document(
                    names, "Nothing to show yet", [("waiting", "", f"<p>{html.escape(problem)}</p>")], version="@"
                )
            )

    def _show(self, text: str) -> None:
        self.version = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.text = text.replace('data-version="@"', f'data-version="{self.version}"', 1).encode()


def not_begun(path: Path) -> bool:
    """Whether a path is that of a run that may be about to begin: nothing is there yet, or a directory without a log and with no
    file but its configuration and hidden ones (its lock)."""
    if not path.exists():
        return path.suffix.lower() not in FILES  # of a file that is not there the name may be wrong
    if not path.is_dir() or is_run(path):
        return False
    return (path / "config.yaml").is_file() or all(
        file.name.startswith(".") for file in path.rglob("*") if file.is_file()
    )


def stamps(paths: list[Path]) -> Iterator[tuple[str, int, int]]:
    """(name, time of change, size) of the files that a page is made of."""
    for path in paths:
        files = (
            [file for part in PARTS for file in sorted(path.glob(part))] if is_run(path) else sorted(path.rglob("*"))
        )
        for file in [path] if path.is_file() else files:
            try:
                status = file.stat()
            except OSError:  # gone since
                continue
            yield str(file), status.st_mtime_ns, status.st_size


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing of a client that has gone: a closed tab is no error."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def serve(paths: list[Path], port: int, reading: Reading, log: Callable[[str], None]) -> None:
    """Serve the page of `paths` until Ctrl-C. Raises InputError where the port cannot be had (0: any free one)."""
    live = LivePage(paths, reading, log)
    try:
        server = Server((ADDRESS, port), handler(live))
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror})"
        raise InputError(f"--serve {port}: the port {reason}; give another, or 0 for any free one") from None
    try:
        live.update()
        threading.Thread(target=_keep_up, args=(live,), daemon=True, name="page").start()
        log(f"serving http://{ADDRESS}:{server.server_address[1]}/ to this machine alone; Ctrl-C ends it")
        server.serve_forever()
    except KeyboardInterrupt:
        log("no longer served")
    finally:
        server.server_close()


def _keep_up(live: LivePage) -> None:
    while True:
        begin = time.monotonic()
        changed, _ = attempt(live.update)
        least = LEAST_SECONDS if changed else LOOK_SECONDS
        time.sleep(max(time.monotonic() - begin, least))


def handler(live: LivePage) -> type[BaseHTTPRequestHandler]:
    """Answers requests for the page, and no others."""

    class Handler(BaseHTTPRequestHandler):
        timeout = CLIENT_SECONDS

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, *, with_body: bool) -> None:
            text, version = live.text, live.version
            given = self.headers.get("Host", "").lower()
            host, asked = given.rpartition(":")[0] or given, self.path.lower().removeprefix(f"http://{given}")
            code, body, kind = 200, text, "text/html; charset=utf-8"
            if host not in HOSTS or asked.partition("?")[0] != "/":
                code, body, kind = 404, b"only the page / is served\n", "text/plain; charset=utf-8"
            self.send_response(code)
            headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
            headers |= {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
            for name, value in (headers | ({"ETag": f'"{version}"'} if code == 200 else {})).items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *values: object) -> None:
            """Requests are not logged: the page asks every two seconds."""

    return Handler
