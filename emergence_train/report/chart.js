// Draws a chart from the data beside it, at the size that it has on the screen.
"use strict";
const SHAPES = { square: "M-1-1h2v2h-2z", triangle: "M0-1.2 1.15 0.9h-2.3z", down: "M0 1.2 1.15-0.9h-2.3z",
  right: "M1.2 0-0.9 1.15v-2.3z",
  cross: "M-1.2-0.6-0.6-1.2 0-0.6 0.6-1.2 1.2-0.6 0.6 0 1.2 0.6 0.6 1.2 0 0.6-0.6 1.2-1.2 0.6-0.6 0z" };
const COLOURS = 8, RAMP = JSON.parse(document.getElementById("ramp").textContent);
const RUNS = JSON.parse(document.getElementById("runs")?.textContent ?? '{"keys":[],"runs":{}}');
const escape = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
const page = { hidden: new Set(), colour: "" }; // runs that are hidden everywhere; the setting that colours them
const charts = [];

const ramp = (share) => {
  const [light, dark] = RAMP[Math.round(share * (RAMP.length - 1))];
  return `--l:${light};--d:${dark}`;
};

// What a run is coloured by: its own place, or that of its value of the chosen setting.
const category = (run) => {
  if (!page.colour || !RUNS.runs[run]) return null;
  const values = [...new Set(Object.values(RUNS.runs).map((settings) => settings[page.colour]))];
  if (values.every((v) => v !== "" && isFinite(v))) values.sort((a, b) => a - b);
  const value = RUNS.runs[run][page.colour], place = values.indexOf(value);
  const ordered = values.length > 3 && values.every((v) => isFinite(v));
  return { value, place, style: ordered ? ramp(place / (values.length - 1)) : place % COLOURS };
};

const colours = (trace) => {
  if (trace.h !== undefined) return ramp(trace.h);
  const of = category(trace.r);
  if (of && typeof of.style === "string") return of.style;
  const name = `var(--c${(of ? of.style : trace.c) % COLOURS})`;
  return `--l:${name};--d:${name}`;
};

// The name that a trace is shown and hidden under.
const key = (trace) => trace.r || trace.l || "";

// How wide a text is on an axis, in pixels.
const pen = document.createElement("canvas").getContext("2d");
const wide = (text) => {
  pen.font = `12.5px ${getComputedStyle(document.body).fontFamily}`;
  return pen.measureText(text).width;
};

// A name without its middle where it is too long.
const fitted = (name, most) => {
  const end = Math.ceil((most - 1) / 2);
  return name.length <= most ? name : `${name.slice(0, most - 1 - end)}…${name.slice(-end)}`;
};

class Chart {
  constructor(figure) {
    this.figure = figure;
    this.data = JSON.parse(figure.querySelector("script").textContent);
    this.plot = figure.querySelector(".plot");
    this.hidden = new Set();
    this.log = { x: !!this.data.xl, y: !!this.data.yl };
    this.zoom = { x: null, y: null };
    this.focus = { line: -1, at: 0 };
    for (const trace of this.data.s) trace.x = this.data.xs[trace.x];
    this.readable = this.data.s.filter((trace) => trace.l && trace.y);
  }

  shown(trace) {
    return !this.hidden.has(key(trace)) && !(trace.r && page.hidden.has(trace.r));
  }

  // Rows of a trace that the axes can show: [x, y, low, high].
  rows(trace) {
    const rows = [];
    trace.x.forEach((x, i) => {
      const row = [x, trace.y ? trace.y[i] : null, trace.lo ? trace.lo[i] : null, trace.hi ? trace.hi[i] : null];
      if (this.log.x && x <= 0) return;
      if (this.log.y && row.slice(1).some((v) => v !== null && v <= 0)) return;
      rows.push(row);
    });
    return rows;
  }

  setAxes(width) {
    const { data } = this, names = data.n;
    const height = names ? 24 * names.length + 58 : Math.round(Math.min(Math.max(width * 0.66, 230), 420));
    const rows = this.data.s.filter((trace) => this.shown(trace)).flatMap((trace) => this.rows(trace));
    const xs = rows.map((row) => row[0]), least = (list) => list.reduce((a, b) => Math.min(a, b), Infinity);
    const most = (list) => list.reduce((a, b) => Math.max(a, b), -Infinity);
    let x = this.zoom.x, y = this.zoom.y;
    if (!x) x = this.log.x === !!data.xl || !xs.length ? data.xr : limits(least(xs), most(xs), this.log.x);
    const inside = rows.filter((row) => row[0] >= x[0] && row[0] <= x[1]);
    const ys = inside.flatMap((row) => row.slice(1)).filter((v) => v !== null);
    const own = !this.zoom.x && this.log.y === !!data.yl && this.data.s.every((trace) => this.shown(trace));
    if (!y) y = names || own || !ys.length ? data.yr : limits(least(ys), most(ys), this.log.y);
    if (!y[0] && this.log.y) y = [1e-12, y[1]];
    const side = data.y ? 34 : 12; // beside the labels
    this.names = names && names.map((name) => {
      let most = name.length;
      while (most > 3 && wide(fitted(name, most)) > width / 2 - side) most -= 1;
      return fitted(name, most);
    });
    const labels = this.names || ticks(y[0], y[1], this.log.y, 5).map(short);
    const left = Math.min(side + Math.max(...labels.map(wide), 7), width / 2);
    const ends = data.f ? [width - 12, left] : [left, width - 12];
    Object.assign(this, { width, height, left, top: 10, bottom: height - 46 });
    this.x = axis(x[0], x[1], this.log.x, ...ends);
    this.y = axis(y[0], y[1], this.log.y, this.bottom, this.top);
  }

  draw(width = Math.max(this.plot.clientWidth, 200)) {
    this.setAxes(width);
    const { left, top, bottom, height, data } = this, right = width - 12;
    const w = right - left, h = bottom - top;
    const marks = data.s.filter((trace) => this.shown(trace)).map((trace) => this.marks(trace)).join("");
    const svg = this.plot.querySelector("svg");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.innerHTML = `<g aria-hidden="true">${this.grid(left, right, top, bottom, height)}` +
      `<svg x="${left - 5}" y="${top - 5}" width="${w + 10}" height="${h + 10}" viewBox="${left - 5} ${top - 5} ${w + 10} ${h + 10}"` +
      ` style="overflow:hidden;width:${w + 10}px;height:${h + 10}px">${marks}</svg><path class="cross"/><g class="dots"></g><rect class="chosen"/></g>`;
    this.svg = svg;
  }

  grid(left, right, top, bottom, height) {
    const { data } = this;
    let out = `<path class="axis" d="M${left} ${bottom}H${right}"/>`, last = -Infinity;
    const across = ticks(this.x.low, this.x.high, this.log.x, Math.max(3, Math.min(6, this.width / 80)));
    for (const tick of data.f ? across.reverse() : across) {
      const x = this.x.at(tick), text = short(tick);
      out += `<path class="grid" d="M${x} ${top}V${bottom}"/>`;
      if (x - last < 8 * text.length + 6) continue; // no room beside the one before
      last = x;
      out += `<text x="${x}" y="${bottom + 17}" text-anchor="middle">${text}</text>`;
    }
    const down = data.n ? this.names.map((name, i) => [i, name]) : ticks(this.y.low, this.y.high, this.log.y, 5).map((v) => [v, short(v)]);
    let above = Infinity;
    for (const [value, text] of down) {
      const y = this.y.at(value);
      out += `<path class="grid" d="M${left} ${y}H${right}"/>`;
      if (!data.n && above - y < 13) continue; // no room above the one before
      above = data.n ? Infinity : y;
      out += `<text x="${left - 6}" y="${y + 4}" text-anchor="end">${escape(text)}${data.n ? `<title>${escape(data.n[value])}</title>` : ""}</text>`;
    }
    const half = 3.4 * data.x.length + 2, centre = Math.max(half, Math.min((left + right) / 2, this.width - half));
    out += `<text class="label" x="${centre}" y="${height - 8}" text-anchor="middle">${escape(data.x)}</text>`;
    const tall = 3.4 * data.y.length + 2, middle = Math.max(tall, Math.min((top + bottom) / 2, height - tall));
    return out + `<text class="label" transform="translate(12 ${middle}) rotate(-90)" text-anchor="middle">${escape(data.y)}</text>`;
  }

  marks(trace) {
    const rows = this.rows(trace), style = `style="${colours(trace)}"`;
    const at = (x, y) => `${this.x.at(x).toFixed(1)} ${Math.max(Math.min(this.y.at(y), 9999), -9999).toFixed(1)}`;
    if (!rows.length) return "";
    let out = "";
    if (trace.lo && trace.k.includes("b")) {
      out += `<path class="bars" ${style} d="${rows.map((r) => `M${at(r[0], r[2])}L${at(r[0], r[3])}`).join("")}"/>`;
    } else if (trace.lo) {
      const edge = [...rows.map((r) => at(r[0], r[3])), ...rows.map((r) => at(r[0], r[2])).reverse()];
      out += `<path class="band" ${style} d="M${edge.join("L")}Z"/>`;
    }
    const line = trace.k.includes("l");
    if (line && rows.length > 1) {
      const kind = trace.h !== undefined ? (trace.h >= 1 ? " newest" : " older") : trace.k.includes("d") ? " dashed" : "";
      out += `<path class="line${kind}" ${style} d="M${rows.map((r) => at(r[0], r[1])).join("L")}"/>`;
    }
    if (trace.k.includes("p") || (line && rows.length === 1)) {
      const small = rows.length >= 60;
      if (trace.m) {
        const size = small ? 1.5 : 3, place = (r) => at(r[0], r[1]);
        out += rows.map((r) => `<path class="point" ${style} transform="translate(${place(r)}) scale(${size})" d="${SHAPES[trace.m]}"/>`).join("");
      } else {
        out += `<path class="dots${small ? " small" : ""}" ${style} d="${rows.map((r) => `M${at(r[0], r[1])}h0`).join("")}"/>`;
      }
    }
    return out;
  }
}
