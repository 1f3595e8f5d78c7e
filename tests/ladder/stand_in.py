"""A stand-in for emergence-train, for tests of who starts runs: train writes the files that a finished run has.

Its behaviour is in the environment: STAND_IN maps run names to a list of exit codes, one a start (a list: one a rank), a number
of seconds (a list: one a rank), the code after SIGTERM (null: none, as of a run that is still starting), and files that are not
left there.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

if sys.argv[1] == "prepare":
    time.sleep(float(os.environ.get("STAND_IN_PREPARE_SECONDS", "0")))
    if (prepared := int(os.environ.get("STAND_IN_PREPARE", "0"))) < 0:
        os.kill(os.getpid(), -prepared)
    sys.exit(prepared)
given = dict(word.partition("=")[::2] for word in sys.argv[3:] if "=" in word)
run = Path(json.loads(given["out"])) / json.loads(given["name"])
run.mkdir(parents=True, exist_ok=True)
asked = json.loads(os.environ.get("STAND_IN", "{}")).get(run.name, {})
rank = int(os.environ.get("RANK", "0"))
place = run / (f"starts-{rank}" if rank else "starts")
starts = len(place.read_text().splitlines()) if place.exists() else 0
with open(place, "a") as file:
    file.write(f"{time.time()} {os.environ.get('CUDA_VISIBLE_DEVICES', '')} {' '.join(sys.argv)}\n")
if (stopped := asked.get("stopped", 75)) is not None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(stopped))
seconds = asked.get("seconds", 0)
time.sleep(seconds[rank] if isinstance(seconds, list) else seconds)
codes = asked.get("codes", [])
code = codes[starts] if starts < len(codes) else 0
code = code[rank] if isinstance(code, list) else code
if code < 0:
    os.kill(os.getpid(), -code)
    time.sleep(9)
if code == 0:
    steps = int(given["training.tokens"]) // 256
    (run / "positions").mkdir(exist_ok=True)
    (run / "positions" / f"step-{steps:010d}.parquet").touch()
    for step in range(4, steps + 1, 4):
        (run / "checkpoints" / f"step-{step:010d}").mkdir(parents=True, exist_ok=True)
        (run / "checkpoints" / f"step-{step:010d}" / "manifest.json").touch()
for name in asked.get("unwritten", []):
    (run / name).unlink()
with open(run / "ends", "a") as file:
    file.write(f"{time.time()}\n")
sys.exit(code)
