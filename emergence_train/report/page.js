// Reads values off a chart with the pointer or the arrow keys, and shows one group of charts at a time.
"use strict";
for (const figure of document.querySelectorAll("figure.chart")) {
  const svg = figure.querySelector("svg"), out = figure.querySelector("output"), cursor = svg.querySelector(".cursor");
  const data = JSON.parse(figure.querySelector("script").textContent);
  if (!data.series.length) continue;
  let line = data.series.length - 1, at = 0;
  const show = () => {
    const s = data.series[line];
    cursor.style.visibility = "visible";
    cursor.setAttribute("cx", s.px[at]);
    cursor.setAttribute("cy", s.py[at]);
    out.textContent = `${s.label} · ${data.x} ${s.x[at]} · ${data.y} ${s.y[at]}`;
  };
  const nearest = (list, x) => list.reduce((best, v, i) => Math.abs(v - x) < Math.abs(list[best] - x) ? i : best, 0);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    let best = Infinity;
    data.series.forEach((s, number) => {
      const i = nearest(s.px, x), distance = Math.hypot(s.px[i] - x, s.py[i] - y);
      if (distance < best) { best = distance; line = number; at = i; }
    });
    show();
  });
  svg.addEventListener("keydown", (event) => {
    const turn = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[event.key];
    if (!turn) return;
    event.preventDefault();
    if (turn[0]) {
      const x = data.series[line].px[at];
      line = (line + turn[0] + data.series.length) % data.series.length;
      at = nearest(data.series[line].px, x);
    }
    at = Math.min(Math.max(at + turn[1], 0), data.series[line].px.length - 1);
    show();
  });
  svg.addEventListener("focus", show);
}
for (const choice of document.querySelectorAll("fieldset[data-choice]")) {
  const apply = () => {
    const wanted = choice.querySelector("input:checked").value;
    for (const part of document.querySelectorAll(`[data-of="${choice.dataset.choice}"]`)) part.hidden = part.dataset.is !== wanted;
  };
  choice.addEventListener("change", apply);
  apply();
}
