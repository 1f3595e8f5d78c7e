"""torch's flight recorder: the last collectives of a process, and which of them had started and completed.

When the watchdog has a verdict every rank writes its own to stacks/flight-RANK in the run directory; torch does so by itself
where a collective of NCCL timed out. `torchfrtrace RUN/stacks -p flight-` compares NCCL's records over the ranks. The files
are pickles, torch's format for that tool; nothing here reads them.
"""

import contextlib
import os
import threading
from pathlib import Path

STACKS = "stacks"  # in the run directory: stacks and collectives of each rank when the run was ended
PREFIX = "flight-"
SECONDS = 3.0  # seconds for a record: it queries the device, which may not answer


def prepare(run: Path, nccl: bool) -> None:
    """Set the flight recorder's variables before init_process_group; set ones are kept. gloo needs none."""
    if not nccl:
        return
    path = str((run / STACKS / PREFIX).absolute())
    settings = {
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_FR_DUMP_TEMP_FILE": path,
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def write(run: Path, rank: int, nccl: bool) -> Path | None:
    """This rank's record into the run directory -> its path, or None where there is none to be had.

    Without the stack traces of the collectives: to name their frames torch imports some 900 modules, in this thread, while the
    main thread may be importing the same ones. Where the ranks hang the watchdog writes their stacks itself.
    """
    from torch._C import _distributed_c10d

    take = getattr(_distributed_c10d, "_dump_nccl_trace" if nccl else "_dump_fr_trace", None)
    path = run / STACKS / f"{PREFIX}{rank}"
    if take is None:  # a build of torch without the recorder
        return None

    def work() -> None:
        with contextlib.suppress(Exception):  # a full disk, a device in disorder: no reason not to end
            data = take(includeStackTraces=False)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            written.append(path)

    written: list[Path] = []
    thread = threading.Thread(target=work, name="flight-recorder", daemon=True)
    thread.start()
    thread.join(SECONDS)
    return written[0] if written else None
