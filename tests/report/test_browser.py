"""The page in a real browser: no script error, no network, accessible by axe, and operated by keys and pointer.

Skipped where there is no Chromium; the checks of axe where there is no axe-core (`npm install axe-core`, or AXE_JS names it).
"""

import json
import re

import pytest
import yaml

from emergence_train.report.page import report
from report.browser import AXE, CHROMIUM, in_browser
from report.test_page import write_evaluations, write_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine"),
]
RULES = json.dumps(["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"])
WITH_RUNS = """const chart = charts.find((c) => c.svg && c.data.x === 'token position'
  && c.data.s.filter((t) => t.r && t.l).length > 2);"""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Three runs: two seeds of one learning rate, and another rate."""
    root = tmp_path_factory.mktemp("browser")
    runs = []
    for number, (lr, seed) in enumerate(((0.1, 1), (0.1, 2), (0.2, 1))):
        run = write_run(root, f"r{lr}-{seed}", 1000, seed=number)
        write_evaluations(run, 1000, number)
        (run / "config.yaml").write_text(yaml.safe_dump({"training": {"schedule": {"lr": lr}}, "seed": seed}))
        runs.append(run)
    return report(runs, root / "out").read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing(text, tmp_path, width, dark):
    if AXE is None:
        pytest.skip("axe-core is not on this machine")
    script = f"const r = await axe.run(document, {{runOnly: {RULES}}});"
    script += "return {passes: r.passes.length, violations: r.violations.map((v) => [v.id, v.nodes[0].html])};"
    seen = in_browser(text, script, tmp_path, width=width, dark=dark, axe=True)
    assert seen["errors"] == [] and seen["result"]["violations"] == [] and seen["result"]["passes"] > 20
    assert (seen["width"], seen["wide"], seen["dark"]) == (width, False, dark)


def test_axe_would_find_something(tmp_path):
    if AXE is None:
        pytest.skip("axe-core is not on this machine")
    page = '<!doctype html><html><head><script>const charts = [];</script></head><body><img src="data:,"></body></html>'
    seen = in_browser(page, "return (await axe.run()).violations.map((v) => v.id);", tmp_path, axe=True)
    assert {"image-alt", "html-has-lang"} <= set(seen["result"])


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_fetched_and_nothing_fails(text, tmp_path, width):
    script = """const grids = () => [...document.querySelectorAll('[data-of=split]')].filter((g) => g.checkVisibility()).length;
    const before = grids(); document.querySelectorAll('fieldset input')[1].click();
    const small = [...document.querySelectorAll('button, input, select, summary')].filter((b) => b.checkVisibility()
      && b.getBoundingClientRect().height < 24 && !b.closest('label')).length;
    return {before, after: grids(), drawn: charts.filter((c) => c.svg).length, small};"""
    seen = in_browser(text, script, tmp_path, width=width)
    assert seen["errors"] == [] and seen["requests"] == [] and not seen["wide"]
    assert seen["result"]["before"] == seen["result"]["after"] == 1
    assert seen["result"]["drawn"] > 5 and seen["result"]["small"] == 0


def test_keys_read_values_zoom_and_reset(text, tmp_path):
    script = f"""{WITH_RUNS}
    const press = (key) => {{
      chart.svg.dispatchEvent(new KeyboardEvent('keydown', {{key, bubbles: true}}));
      return chart.output.textContent;
    }};
    const range = () => [chart.x.low, chart.x.high];
    chart.svg.focus();
    const trace = chart.readable[chart.focus.line], out = {{role: chart.svg.getAttribute('role'), full: range()}};
    out.last = [trace.l, trace.x.at(-1), trace.y.at(-1)];
    out.end = press('End'); out.home = press('Home'); out.up = press('ArrowUp');
    out.live = chart.output.getAttribute('aria-live');
    press('End'); press('+'); out.near = range(); press('0'); out.again = range();
    return out;"""
    seen = in_browser(text, script, tmp_path)
    result = seen["result"]
    assert seen["errors"] == [] and result["role"] == "application" and result["live"] == "polite"
    name, _, y = result["last"]
    assert result["end"].startswith(f"{name} · token position ") and f"loss (nats per token) {y:.4g}" in result["end"]
    assert result["home"] != result["end"] and not result["up"].startswith(name)
    assert result["near"][0] > result["full"][0] and result["again"] == result["full"]


def test_a_row_of_buttons_is_one_tab_stop(text, tmp_path):
    """Arrows go along it and round its ends; a legend that is made again keeps the focus where it was."""
    script = f"""{WITH_RUNS}
    const press = (key) => document.activeElement.dispatchEvent(
      new KeyboardEvent('keydown', {{key, bubbles: true, cancelable: true}}));
    const out = [];
    for (const box of chart.figure.querySelectorAll('[role=toolbar]')) {{
      const list = () => [...box.querySelectorAll('button')], stops = () => list().filter((b) => b.tabIndex === 0).length;
      const at = () => list().indexOf(document.activeElement), seen = [list().length, stops()];
      list()[0].focus(); press('ArrowRight'); seen.push(at()); press('Home'); press('ArrowLeft'); seen.push(at() - list().length);
      press('Home'); document.activeElement.click(); seen.push(at(), stops());
      out.push([box.getAttribute('aria-label').split(': ')[1], ...seen]);
    }}
    return {{out, first: document.querySelector('a').getAttribute('href')}};"""
    seen = in_browser(text, script, tmp_path)
    assert seen["errors"] == [] and seen["result"]["first"] == "#main"
    for name, buttons, *rest in seen["result"]["out"]:
        assert name in ("legend", "tools") and buttons > 1 and rest == [1, 1, -1, 0, 1]


def test_pointer_shows_all_lines_and_drags_a_zoom(text, tmp_path):
    """Every line is named at the cursor, charts of the same axis show it too, a drag keeps that range, a double click all."""
    script = f"""{WITH_RUNS}
    const box = chart.svg.getBoundingClientRect();
    const fire = (type, x, y) => chart.svg.dispatchEvent(new PointerEvent(type,
      {{clientX: box.left + x, clientY: box.top + y, button: 0, pointerId: 1, bubbles: true}}));
    for (const other of charts) other.onScreen = !!other.svg;
    fire('pointermove', box.width / 2, box.height / 2);
    const out = {{tip: tip.innerText, hidden: tip.hidden, full: [chart.x.low, chart.x.high]}};
    const crossed = (c) => c.svg && c !== chart && c.svg.querySelector('.cross').getAttribute('d');
    out.linked = charts.filter(crossed).map((c) => c.data.x);
    const [a, b] = [box.width * 0.4, box.width * 0.7];
    out.wanted = [chart.x.value(a), chart.x.value(b)];
    fire('pointerdown', a, 80); fire('pointermove', b, 82); fire('pointerup', b, 82);
    out.zoomed = [chart.x.low, chart.x.high];
    chart.svg.dispatchEvent(new MouseEvent('dblclick'));
    out.again = [chart.x.low, chart.x.high];
    dispatchEvent(new KeyboardEvent('keydown', {{key: 'Escape'}}));
    out.gone = tip.hidden;
    return out;"""
    seen = in_browser(text, script, tmp_path)
    result = seen["result"]
    assert seen["errors"] == [] and not result["hidden"] and result["gone"]
    assert all(f"r{name}" in result["tip"] for name in ("0.1-1", "0.1-2", "0.2-1"))
    assert result["linked"] and set(result["linked"]) == {"token position"}
    assert result["zoomed"] == pytest.approx(result["wanted"], rel=1e-6) and result["again"] == result["full"]


def test_legends_axes_and_colours_are_choices(text, tmp_path):
    script = f"""{WITH_RUNS}
    const marks = () => chart.plot.querySelectorAll('.line, .dots').length;
    const entry = (n) => chart.figure.querySelectorAll('.legend button')[n];
    const elsewhere = charts.find((c) => c.svg && c !== chart && c.data.s.filter((t) => t.r && t.l).length > 2);
    const others = () => elsewhere.plot.querySelectorAll('.line, .dots').length;
    const out = {{marks: [marks()], others: [others()]}};
    entry(0).click(); out.marks.push(marks()); out.others.push(others()); out.pressed = entry(0).getAttribute('aria-pressed');
    entry(0).click(); out.marks.push(marks());
    entry(1).dispatchEvent(new MouseEvent('click', {{shiftKey: true}}));
    out.alone = [...chart.figure.querySelectorAll('.legend button')].map((b) => b.getAttribute('aria-pressed'));
    entry(0).click(); entry(2).click();
    const log = [...chart.figure.querySelectorAll('.tools button')].find((b) => b.textContent === 'log x');
    out.log = [log.getAttribute('aria-pressed')]; log.click(); out.log.push(log.getAttribute('aria-pressed'));
    out.even = Math.abs(chart.x.at(20) - chart.x.at(10) - chart.x.at(30) + chart.x.at(20)) < 1e-6; log.click();
    const by = document.getElementById('colour'); by.value = 'lr'; by.dispatchEvent(new Event('change'));
    out.legend = [...chart.figure.querySelectorAll('.legend button')].map((b) => b.textContent);
    return out;"""
    result = in_browser(text, script, tmp_path)["result"]
    assert result["marks"][1] < result["marks"][0] == result["marks"][2] and result["pressed"] == "false"
    assert result["others"][1] < result["others"][0]  # a run that is hidden is hidden everywhere
    assert result["alone"] == ["false", "true", "false"] and result["log"] == ["true", "false"] and result["even"]
    assert result["legend"] == ["lr = 0.1", "lr = 0.2"]


def test_numbers_are_a_table_a_csv_and_a_picture(text, tmp_path):
    """No cell is a formula to a spreadsheet; numbers stay numbers."""
    script = f"""{WITH_RUNS}
    const press = (name) => [...chart.figure.querySelectorAll('.tools button')].find((b) => b.textContent === name).click();
    press('numbers');
    const cells = ['=1+1', '+x', '-x', '@a', '\\t=1', '-3.5', '+2', -2, 'a,b', 'say "x"', null].map(cell);
    const parsed = new DOMParser().parseFromString(picture(chart), 'image/svg+xml');
    return {{cells, csv: csv(...rowsOf(chart)), data: chart.data.s.find((t) => t.l), heads: [...chart.figure.querySelectorAll(
      '.numbers th')].map((h) => h.textContent), rows: chart.figure.querySelectorAll('.numbers tbody tr').length,
      root: parsed.documentElement.tagName,
      error: !!parsed.querySelector('parsererror'), texts: parsed.documentElement.textContent}};"""
    result = in_browser(text, script, tmp_path)["result"]
    assert result["cells"][:5] == ["'=1+1", "'+x", "'-x", "'@a", "'\t=1"]
    assert result["cells"][5:] == ["-3.5", "+2", "-2", '"a,b"', '"say ""x"""', ""]
    lines = result["csv"].split("\r\n")
    first = result["data"]
    assert lines[0] == "series,token position,loss (nats per token),low,high" == ",".join(result["heads"])
    assert lines[1] == ",".join(str(v) for v in (first["l"], first["x"][0], *(first[k][0] for k in ("y", "lo", "hi"))))
    assert result["rows"] == min(len(lines) - 2, 400)
    assert result["root"] == "svg" and not result["error"] and "r0.1-1" in result["texts"]


def test_what_is_drawn_of_more_rows_is_called_so(text, tmp_path):
    """The training curve is drawn in bins: the button says so, its title and the table where every step is; iid has every row."""
    script = """const of = (title) => {
      const { figure } = charts.find((c) => c.data.t === title), [show] = figure.querySelectorAll('[aria-expanded]');
      show.click();
      const save = [...figure.querySelectorAll('.tools button')].find((b) => b.textContent.startsWith('CSV'));
      return [save.textContent, save.title, figure.querySelector('.numbers .note')?.textContent ?? ''];
    };
    return [of('Training'), of('Validation, iid')];"""
    binned, whole = in_browser(text, script, tmp_path)["result"]
    assert binned[0] == "CSV as drawn" and "120 bins; every step: metrics.jsonl" in binned[1]
    assert binned[2] == f"As drawn: {binned[1].removeprefix('save ')}."
    assert whole == ["CSV", "save the numbers", ""]


def test_paper_has_what_is_folded_and_screen_is_as_before(text, tmp_path):
    """Before pages are counted: every shown chart is drawn, as wide as its place on paper; configurations stay folded."""
    script = """const open = () => [...document.querySelectorAll('details:not(.long)')].map((d) => d.open);
    const width = (f) => f.querySelector('svg').viewBox.baseVal.width, before = open();
    document.querySelector('details:not(.long)').insertAdjacentHTML('beforebegin', '<details open class="mine"></details>');
    dispatchEvent(new Event('beforeprint'));
    const on = open(), shown = charts.filter((c) => c.figure.checkVisibility());
    const fit = shown.every((c) => c.svg && Math.abs(width(c.figure) - onPaper(c.figure)) < 0.01);
    const long = [...document.querySelectorAll('details.long')].map((d) => d.open);
    dispatchEvent(new Event('afterprint'));
    const back = charts.filter((c) => c.onScreen && c.svg).every((c) => width(c.figure) === c.plot.clientWidth);
    return {before, on, fit, long, after: open(), back, shown: shown.length};"""
    seen = in_browser(text, script, tmp_path)
    result = seen["result"]
    assert seen["errors"] == [] and result["shown"] > 10 and result["fit"] and result["back"]
    assert result["before"] and not any(result["before"]) and all(result["on"]) and not any(result["long"])
    assert result["after"] == [True, *result["before"]], "what the reader had opened stays open"


def test_without_script_everything_is_there(text, tmp_path):
    """Every chart has its picture and every split is shown; what needs the script is not."""
    static = re.sub(r"<script(?! type).*?</script>", "", text, flags=re.S)
    script = """const drawn = (svg) => svg.querySelector('.line, .dots, .band');
    return {pictures: [...document.querySelectorAll('.plot svg')].every(drawn),
      shown: [...document.querySelectorAll('figure')].every((f) => f.checkVisibility()),
      buttons: document.querySelectorAll('button').length};"""
    seen = in_browser(static.replace("<head>", "<head><script>const charts = [];</script>", 1), script, tmp_path)
    assert seen["errors"] == [] and seen["result"] == {"pictures": True, "shown": True, "buttons": 0}
