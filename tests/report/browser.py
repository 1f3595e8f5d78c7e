"""Pages in a real browser: a script of the test runs in the page, in a frame of a given width, and its result comes back."""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE_PLACES = (  # axe-core, the accessibility checks: `npm install axe-core` here, or anywhere that AXE_JS names
    os.environ.get("AXE_JS", ""),
    "node_modules/axe-core/axe.min.js",
    "/usr/share/nodejs/axe-core/axe.min.js",
    "/usr/lib/node_modules/axe-core/axe.min.js",
    "/usr/local/lib/node_modules/axe-core/axe.min.js",
)
AXE = next((Path(place) for place in AXE_PLACES if place and Path(place).is_file()), None)

BEFORE = """<script>window.errors = []; window.requests = [];
addEventListener('error', (e) => errors.push(e.message));
addEventListener('unhandledrejection', (e) => errors.push(String(e.reason)));
new PerformanceObserver((list) => requests.push(...list.getEntries().map((e) => e.name)))
  .observe({type: 'resource', buffered: true});
</script>"""
AFTER = """<script>addEventListener('load', async () => {
  let result;
  try {
    for (const chart of charts) if (chart.figure.checkVisibility() && !chart.svg) begin(chart);
    result = await (async () => { %s })();
  } catch (e) { errors.push(`${e} ${e.stack}`); }
  parent.postMessage(JSON.stringify({result, errors, requests, width: innerWidth,
    wide: document.documentElement.scrollWidth > innerWidth,
    dark: matchMedia('(prefers-color-scheme: dark)').matches}), '*');
});</script></body>"""
FRAME = """<!doctype html><html style="color-scheme: light dark"><body style="margin: 0"><pre id="result"></pre><script>
addEventListener('message', (e) => { document.getElementById('result').textContent = e.data; });</script>
<iframe src="probed.html" style="border: 0; width: %dpx; height: 900px"></iframe></body></html>"""


def in_browser(
    page: str, script: str, folder: Path, *, width: int = 1280, dark: bool = False, axe: bool = False
) -> dict:
    """Run `script` (the body of an async function that returns something) in the page once it is drawn.

    Returns {result, errors, requests, width, wide (it scrolls sideways), dark}.
    """
    before = BEFORE + (f"<script>{AXE.read_text(encoding='utf-8')}</script>" if axe and AXE else "")
    probed = page.replace("<head>", "<head>" + before, 1).replace("</body>", AFTER % script)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "probed.html").write_text(probed, encoding="utf-8")
    (folder / "frame.html").write_text(FRAME % width)
    done = _chromium(folder, ["--dump-dom", f"--window-size={max(width, 500)},900"], dark)
    result = re.search(r'<pre id="result">(.*?)</pre>', done, re.S)
    return json.loads(html.unescape(result.group(1)))


def _chromium(folder: Path, options: list[str], dark: bool) -> str:
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--virtual-time-budget=30000", f"--user-data-dir={folder / 'profile'}", *options]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run([*command, f"file://{folder / 'frame.html'}"], capture_output=True, text=True, timeout=300)
    return done.stdout
