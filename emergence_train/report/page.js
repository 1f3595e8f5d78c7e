// Makes the page's charts live: tools and legends round them, choices of what is shown, a page that reloads itself.
"use strict";
const button = (text, title, act, pressed) => {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.title = title;
  if (pressed !== undefined) made.setAttribute("aria-pressed", pressed);
  made.addEventListener("click", (event) => act(made, event));
  return made;
};

// One tab stop for a row of buttons; the arrow keys go along it.
const roving = (box) => {
  const buttons = [...box.querySelectorAll("button")];
  for (const one of buttons) one.tabIndex = one === buttons[0] ? 0 : -1;
  if (box.dataset.roving) return; // listens already, to buttons that come later too
  box.dataset.roving = "1";
  box.addEventListener("focusin", (event) => {
    for (const one of box.querySelectorAll("button")) one.tabIndex = one === event.target ? 0 : -1;
  });
  box.addEventListener("keydown", (event) => {
    const list = [...box.querySelectorAll("button")], at = list.indexOf(event.target);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: list.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    list[(to + list.length) % list.length].focus();
    event.preventDefault();
  });
};

const tools = (chart) => {
  const { data } = chart, row = document.createElement("div"), numbers = document.createElement("div");
  row.className = "tools";
  row.setAttribute("role", "toolbar");
  row.setAttribute("aria-label", `${data.t}: tools`);
  const positive = { x: data.xs.every((xs) => xs.every((v) => v > 0)),
    y: !data.n && data.s.every((trace) => [trace.y, trace.lo, trace.hi].every((ys) => !ys || ys.every((v) => v > 0))) };
  for (const name of ["x", "y"]) {
    if (!positive[name] && !chart.log[name]) continue;
    row.append(button(`log ${name}`, `logarithmic ${name} axis`, (made) => {
      chart.log[name] = !chart.log[name];
      chart.zoom = { x: null, y: null };
      made.setAttribute("aria-pressed", chart.log[name]);
      chart.draw();
    }, chart.log[name]));
  }
  row.append(button("reset", "show everything again (double click, or 0)", () => unzoom(chart)));
  const show = button("numbers", "the numbers as a table", (made) => {
    numbers.hidden = !numbers.hidden;
    made.setAttribute("aria-expanded", !numbers.hidden);
    if (!numbers.hidden) numbers.innerHTML = (data.d ? `<p class="note">As drawn: ${escape(data.d)}.</p>` : "") + table(...rowsOf(chart));
  });
  show.setAttribute("aria-expanded", false);
  const [text, title] = data.d ? ["CSV as drawn", `save ${data.d}`] : ["CSV", "save the numbers"];
  row.append(show, button(text, title, () => save(`${data.t}.csv`, "text/csv", csv(...rowsOf(chart)))),
    button("SVG", "save the picture", () => save(`${data.t}.svg`, "image/svg+xml", picture(chart))));
  numbers.className = "numbers";
  numbers.tabIndex = 0;
  numbers.setAttribute("role", "region");
  numbers.setAttribute("aria-label", `${data.t}: numbers`);
  numbers.hidden = true;
  chart.figure.append(row, numbers);
  roving(row);
};

// A legend entry for each name, or for each value of the setting that colours the runs.
const legend = (chart) => {
  const box = chart.figure.querySelector(".legend");
  if (!box) return;
  const entries = new Map();
  for (const trace of chart.data.s) {
    if (trace.h !== undefined || !(trace.l || trace.r)) continue;
    const of = category(trace.r), name = of ? `${page.colour} = ${of.value}` : trace.l;
    if (!name) continue;
    const entry = entries.get(name) ?? { trace, keys: new Set() };
    entry.keys.add(key(trace));
    entries.set(name, entry);
  }
  for (const old of box.querySelectorAll(".entry")) old.remove();
  const place = ([, { trace }]) => category(trace.r)?.place ?? -1;
  const sorted = page.colour ? [...entries].sort((a, b) => place(a) - place(b)) : [...entries];
  for (const [name, { trace, keys }] of sorted) {
    const on = [...keys].some((k) => !chart.hidden.has(k) && !page.hidden.has(k));
    const made = button("", "hide or show; with Shift: this one alone", (self, event) => {
      const all = new Set([...entries.values()].flatMap((entry) => [...entry.keys]));
      const alone = event.shiftKey;
      for (const k of alone ? all : keys) {
        const hide = alone ? !keys.has(k) : on;
        const set = RUNS.runs[k] ? page.hidden : chart.hidden;
        hide ? set.add(k) : set.delete(k);
      }
      refresh(chart);
      box.querySelectorAll(".entry")[sorted.findIndex(([other]) => other === name)]?.focus();
    }, on);
    const kind = !trace.y ? "area" : trace.k.includes("d") ? "dashed" : trace.k.includes("p") && !trace.k.includes("l") ? "dots" : "";
    const sign = trace.m ? `<svg class="mark" viewBox="0 0 12 12" aria-hidden="true"><path class="point" style="${colours(trace)}" ` +
      `transform="translate(6 6) scale(4)" d="${SHAPES[trace.m]}"/></svg>` : `<i class="key ${kind}" style="${colours(trace)}"></i>`;
    made.className = "entry";
    made.innerHTML = sign + escape(name);
    box.append(made);
  }
  if (!entries.size) return;
  box.setAttribute("role", "toolbar");
  box.setAttribute("aria-label", `${chart.data.t}: legend`);
  roving(box);
};

// Draw again what a change of the page's runs or colours concerns, or this chart alone.
const refresh = (changed) => {
  for (const chart of charts) {
    if (chart !== changed && !chart.data.s.some((trace) => trace.r)) continue;
    if (!chart.svg) continue; // drawn when it comes into sight
    chart.draw();
    legend(chart);
  }
};

const begin = (chart) => {
  const svg = chart.plot.querySelector("svg");
  svg.setAttribute("role", "application");
  svg.setAttribute("aria-roledescription", "chart");
  svg.setAttribute("tabindex", "0");
  svg.setAttribute("aria-label", `${svg.getAttribute("aria-label")} Arrow keys read values, plus and minus zoom, 0 shows everything.`);
  chart.output = document.createElement("output");
  chart.output.className = "read-out";
  chart.plot.after(chart.output);
  chart.draw();
  tools(chart);
  legend(chart);
  listen(chart);
};

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const chart = entry.target.chart;
    chart.onScreen = entry.isIntersecting;
    if (entry.isIntersecting && !chart.svg) begin(chart);
    else if (entry.isIntersecting && chart.width !== Math.max(chart.plot.clientWidth, 200)) chart.draw();
  }
}, { rootMargin: "300px" });
for (const figure of document.querySelectorAll("figure.chart")) {
  figure.chart = new Chart(figure);
  charts.push(figure.chart);
  seen.observe(figure);
}

// On paper every chart is drawn, also one that was never scrolled to, and what is folded is open. All of it before the pages are
// counted: what grows later is cut off at the end.
const PAPER = 700, GAP = 10, SINGLE = 544, FRAME = 26; // pixels: A4 within its margins, and as page.css has them in print
const onPaper = (figure) => {
  const many = figure.parentElement.children.length, columns = many === 3 ? 3 : 2;
  return (many === 1 ? SINGLE : (PAPER - GAP * (columns - 1)) / columns) - FRAME;
};
const folded = [];
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:not([open], .long)")) folded.push(part);
  for (const part of folded) part.open = true;
  for (const chart of charts) {
    if (!chart.figure.checkVisibility()) continue;
    if (!chart.svg) begin(chart);
    chart.draw(onPaper(chart.figure));
  }
});
addEventListener("afterprint", () => {
  for (const part of folded.splice(0)) part.open = false;
  for (const chart of charts) if (chart.svg && chart.onScreen) chart.draw();
});

let waiting = 0;
addEventListener("resize", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => charts.filter((chart) => chart.svg && chart.onScreen).forEach((chart) => chart.draw()), 100);
});
addEventListener("keydown", (event) => { if (event.key === "Escape") clear(); });

for (const choice of document.querySelectorAll("fieldset[data-choice]")) {
  const apply = () => {
    const wanted = choice.querySelector("input:checked").value;
    for (const part of document.querySelectorAll(`[data-of="${choice.dataset.choice}"]`)) part.hidden = part.dataset.is !== wanted;
  };
  choice.addEventListener("change", apply);
  apply();
}

for (const hint of document.querySelectorAll("[data-live]")) hint.hidden = false;

// Colour the runs by a setting.
const by = document.getElementById("colour");
if (by) {
  page.colour = by.value;
  by.addEventListener("change", () => { page.colour = by.value; refresh(null); });
}

for (const scroll of document.querySelectorAll(".scroll")) {
  const read = (row) => [...row.cells].map((one) => one.innerText.replace(/\s+/g, " ").trim());
  const name = scroll.getAttribute("aria-label");
  const made = button("CSV", `save the table ${name}`, () => {
    const [head, ...rows] = [...scroll.querySelectorAll("tr")].map(read);
    save(`${name}.csv`, "text/csv", csv(head, rows));
  });
  made.className = "of-table";
  scroll.after(made);
}

// A served page asks now and then whether it is still the newest, and shows the new one where the reader was.
const version = document.documentElement.dataset.version;
if (version) {
  const state = document.getElementById("state"), place = sessionStorage.getItem("place");
  if (place) scrollTo(0, Number(place));
  addEventListener("pagehide", () => sessionStorage.setItem("place", String(scrollY)));
  const ask = async () => {
    try {
      const answer = await fetch(location.pathname, { method: "HEAD", cache: "no-store" });
      if (answer.ok && answer.headers.get("ETag") !== `"${version}"`) location.reload();
      state.textContent = "live: reloads when the runs' files change";
    } catch {
      state.textContent = "no longer served: this is the last state";
    }
  };
  ask();
  setInterval(ask, 2000);
}
