// Reading values off charts, with the pointer or the keys, in all charts of one x axis at once; zooming.
"use strict";
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
tip.setAttribute("aria-hidden", "true"); // its numbers are read out with the keys
document.body.append(tip);
const AT_ONCE = 8; // lines that the tip names

const nearest = (list, x, at) => {
  let best = -1, least = Infinity;
  for (let i = 0; i < list.length; i++) {
    const distance = Math.abs(at(list[i]) - x);
    if (distance < least) { least = distance; best = i; }
  }
  return best;
};

const named = (chart, y) => (chart.data.n ? chart.data.n[Math.round(y)] ?? "" : short(y));
const visible = (chart) => chart.readable.filter((trace) => chart.shown(trace));

// For each visible line its point nearest to the value x, none where it does not reach there: [line, index, pixel y].
const pointsAt = (chart, x) => {
  const place = chart.x.at(x), reach = (chart.width - chart.left) * 0.06 + 12;
  return visible(chart).flatMap((trace) => {
    const at = nearest(trace.x, place, chart.x.at);
    const near = at >= 0 && (Math.abs(chart.x.at(trace.x[at]) - place) < reach || (x > trace.x[0] && x < trace.x.at(-1)));
    const y = near ? chart.y.at(trace.y[at]) : NaN;
    return isFinite(y) ? [[trace, at, y]] : [];
  });
};

const mark = (chart, x, points) => {
  const place = chart.x.at(x), inside = place >= chart.left && place <= chart.width - 12;
  chart.svg.querySelector(".cross").setAttribute("d", inside ? `M${place} ${chart.top}V${chart.bottom}` : "");
  chart.svg.querySelector("g.dots").innerHTML = !inside ? "" : points.map(([trace, at]) =>
    `<circle class="cursor" style="${colours(trace)}" cx="${chart.x.at(trace.x[at])}" cy="${chart.y.at(trace.y[at])}" r="4.5"/>`).join("");
};

const clear = () => {
  tip.hidden = true;
  for (const chart of charts) {
    if (!chart.svg) continue;
    chart.svg.querySelector(".cross").setAttribute("d", "");
    chart.svg.querySelector("g.dots").textContent = "";
  }
};

// The same x in every other chart with that axis that is on the screen.
const link = (from, x) => {
  for (const chart of charts) {
    if (chart === from || !chart.svg || !chart.onScreen || chart.data.x !== from.data.x || chart.data.n) continue;
    const points = pointsAt(chart, x);
    mark(chart, x, points.length > AT_ONCE ? [] : points);
  }
};

const showTip = (chart, points, line, event) => {
  const [trace, at] = points[line], height = points[line][2];
  const rows = [...points].sort((a, b) => Math.abs(a[2] - height) - Math.abs(b[2] - height)).slice(0, AT_ONCE);
  rows.sort((a, b) => a[2] - b[2]);
  const cells = rows.map(([other, i]) => `<tr class="${other === trace ? "nearest" : ""}"><td><i style="${colours(other)}"></i></td>` +
    `<td>${escape(other.l)}</td><td>${escape(named(chart, other.y[i]))}</td>` +
    `<td>${other.lo ? `[${short(other.lo[i])}, ${short(other.hi[i])}]` : ""}</td></tr>`).join("");
  const more = points.length > rows.length ? `<p>${points.length - rows.length} more lines</p>` : "";
  tip.innerHTML = `<p>${escape(chart.data.x)} ${short(trace.x[at])}</p><table>${cells}</table>${more}`;
  tip.hidden = false;
  const box = tip.getBoundingClientRect(), gap = 16;
  const x = event.clientX + gap + box.width > innerWidth ? event.clientX - gap - box.width : event.clientX + gap;
  tip.style.left = `${Math.max(x, 4)}px`;
  tip.style.top = `${Math.max(Math.min(event.clientY + gap, innerHeight - box.height - 4), 4)}px`;
};

const readOut = (chart, aloud) => {
  const trace = visible(chart)[chart.focus.line], { at } = chart.focus;
  if (!trace) return;
  const range = trace.lo ? ` [${short(trace.lo[at])}, ${short(trace.hi[at])}]` : "";
  chart.output.setAttribute("aria-live", aloud ? "polite" : "off");
  chart.output.textContent = `${trace.l} · ${chart.data.x} ${short(trace.x[at])} · ${chart.data.y} ${named(chart, trace.y[at])}${range}`;
};

const point = (chart, event) => {
  const box = chart.svg.getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
  let best = Infinity, value = null;
  visible(chart).forEach((trace, number) => {
    const at = nearest(trace.x, px, chart.x.at);
    const distance = at < 0 ? NaN : Math.hypot(chart.x.at(trace.x[at]) - px, (chart.y.at(trace.y[at]) - py) / 2);
    if (distance < best) { best = distance; chart.focus = { line: number, at }; value = trace.x[at]; }
  });
  if (value === null) return;
  const points = pointsAt(chart, value), trace = visible(chart)[chart.focus.line];
  const line = points.findIndex((entry) => entry[0] === trace);
  mark(chart, value, points.length > AT_ONCE ? [[trace, chart.focus.at]] : points);
  link(chart, value);
  readOut(chart, false);
  if (line >= 0) showTip(chart, points, line, event);
};

const zoomBy = (chart, factor, middle) => {
  const f = chart.log.x ? Math.log : (v) => v, g = chart.log.x ? Math.exp : (v) => v;
  const [low, high, centre] = [chart.x.low, chart.x.high, middle].map(f);
  chart.zoom.x = [g(centre - (centre - low) * factor), g(centre + (high - centre) * factor)];
  chart.draw();
};

const unzoom = (chart) => {
  chart.zoom = { x: null, y: null };
  chart.draw();
};

const keys = (chart, event) => {
  const lines = visible(chart);
  if (!lines.length || event.ctrlKey || event.metaKey || event.altKey) return;
  const line = Math.min(Math.max(chart.focus.line, 0), lines.length - 1);
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], turn = { ArrowUp: 1, ArrowDown: -1 }[event.key];
  chart.focus = { line, at: Math.min(chart.focus.at, lines[line].x.length - 1) };
  if (step) chart.focus.at = Math.min(Math.max(chart.focus.at + step * (chart.data.f ? -1 : 1), 0), lines[line].x.length - 1);
  else if (turn) {
    const x = chart.x.at(lines[line].x[chart.focus.at]);
    chart.focus.line = (line + turn + lines.length) % lines.length;
    chart.focus.at = Math.max(nearest(lines[chart.focus.line].x, x, chart.x.at), 0);
  } else if (event.key === "Home" || event.key === "End") chart.focus.at = event.key === "Home" ? 0 : lines[line].x.length - 1;
  else if (event.key === "+" || event.key === "=") zoomBy(chart, 0.5, lines[line].x[chart.focus.at]);
  else if (event.key === "-") zoomBy(chart, 2, lines[line].x[chart.focus.at]);
  else if (event.key === "0" || event.key === "Escape") unzoom(chart);
  else return;
  event.preventDefault();
  const trace = lines[chart.focus.line], x = trace.x[chart.focus.at];
  mark(chart, x, [[trace, chart.focus.at]]);
  link(chart, x);
  readOut(chart, true);
};

// A drag chooses a range of x, and of y where it is high too.
const drag = (chart, start) => {
  const { svg } = chart, box = svg.getBoundingClientRect(), rect = svg.querySelector(".chosen");
  const inside = (v, low, high) => Math.min(Math.max(v, low), high);
  const place = (event) => [inside(event.clientX - box.left, chart.left, chart.width - 12),
    inside(event.clientY - box.top, chart.top, chart.bottom)];
  const [x0, y0] = place(start);
  let x1 = x0, y1 = y0;
  const high = () => Math.abs(y1 - y0) > 40 && !chart.data.n;
  const move = (event) => {
    [x1, y1] = place(event);
    const top = high() ? Math.min(y0, y1) : chart.top, tall = high() ? Math.abs(y1 - y0) : chart.bottom - chart.top;
    for (const [name, v] of Object.entries({ x: Math.min(x0, x1), y: top, width: Math.abs(x1 - x0), height: tall })) {
      rect.setAttribute(name, v);
    }
  };
  const end = (event) => {
    for (const name of ["pointermove", "pointerup", "pointercancel"]) svg.removeEventListener(name, name === "pointermove" ? move : end);
    rect.setAttribute("width", 0);
    if (event.type === "pointercancel" || Math.abs(x1 - x0) < 8) return;
    const ends = (one, a, b) => [one.value(a), one.value(b)].sort((p, q) => p - q);
    chart.zoom = { x: ends(chart.x, x0, x1), y: high() ? ends(chart.y, y0, y1) : null };
    clear();
    chart.draw();
  };
  svg.addEventListener("pointermove", move);
  svg.addEventListener("pointerup", end);
  svg.addEventListener("pointercancel", end);
  if (svg.setPointerCapture) try { svg.setPointerCapture(start.pointerId); } catch { /* a pointer that has gone */ }
};

const listen = (chart) => {
  const { svg } = chart;
  svg.addEventListener("pointermove", (event) => point(chart, event));
  svg.addEventListener("pointerleave", clear);
  svg.addEventListener("pointerdown", (event) => { if (event.button === 0) drag(chart, event); });
  svg.addEventListener("dblclick", () => unzoom(chart));
  svg.addEventListener("keydown", (event) => keys(chart, event));
  svg.addEventListener("focus", () => { if (chart.focus.line < 0) chart.focus = { line: visible(chart).length - 1, at: 0 }; readOut(chart, true); });
  svg.addEventListener("blur", clear);
};
