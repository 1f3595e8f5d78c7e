// The numbers of charts and tables: as a table, as CSV, and the picture as a file.
"use strict";
const ROWS = 400; // rows of a chart's table on the page; the file has all

// A cell of CSV. Text that a spreadsheet would run as a formula is made text.
const cell = (value) => {
  let text = value === null || value === undefined ? "" : String(value);
  if (/^[=+\-@\t\r]/.test(text) && !(text.trim() !== "" && isFinite(text))) text = `'${text}`;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};
const csv = (head, rows) => [head, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";

const save = (name, type, text) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name.replace(/[^\p{L}\p{N}._-]+/gu, "_").replace(/^[._]+/, "").slice(0, 80);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};

const rowsOf = (chart) => {
  const { data } = chart, between = data.s.some((trace) => trace.lo);
  const head = ["series", ...(page.colour ? [page.colour] : []), data.x, data.y || "row", ...(between ? ["low", "high"] : [])];
  const rows = data.s.filter((trace) => trace.l || trace.r).flatMap((trace) => trace.x.map((x, i) => [
    trace.l || trace.r, ...(page.colour ? [RUNS.runs[trace.r]?.[page.colour] ?? ""] : []), x,
    trace.y ? (data.n ? data.n[Math.round(trace.y[i])] : trace.y[i]) : "",
    ...(between ? [trace.lo ? trace.lo[i] : "", trace.hi ? trace.hi[i] : ""] : []),
  ]));
  return [head, rows];
};

const table = (head, rows) => `<table><thead><tr>${head.map((h) => `<th scope="col">${escape(h)}</th>`).join("")}</tr></thead><tbody>` +
  rows.slice(0, ROWS).map((row) => `<tr>${row.map((v) => `<td>${escape(v)}</td>`).join("")}</tr>`).join("") + "</tbody></table>" +
  (rows.length > ROWS ? `<p class="note">The first ${ROWS} of ${rows.length} rows; the CSV has all.</p>` : "");

// The chart as it is now, with its legend, as a file of its own: the page's style is written into it.
const picture = (chart) => {
  const copy = chart.svg.cloneNode(true), now = chart.svg.querySelectorAll("*"), width = chart.width;
  copy.querySelectorAll("*").forEach((node, i) => {
    const style = getComputedStyle(now[i]);
    for (const name of ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "stroke-linejoin", "opacity", "font-size", "font-weight"]) {
      node.style.setProperty(name, style.getPropertyValue(name));
    }
    node.removeAttribute("class");
  });
  const ink = getComputedStyle(document.body).color, back = getComputedStyle(chart.figure).backgroundColor;
  let y = chart.height + 6;
  const legend = [...chart.figure.querySelectorAll(".legend .entry:not([aria-pressed=false])")].map((entry) => {
    const sign = entry.querySelector("i"), colour = sign ? getComputedStyle(sign).backgroundColor : ink;
    y += 18;
    return `<rect x="12" y="${y - 9}" width="18" height="8" fill="${colour}"/><text x="36" y="${y}" font-size="12" fill="${ink}">${escape(entry.textContent)}</text>`;
  }).join("");
  return `<svg xmlns="${chart.svg.namespaceURI}" width="${width}" height="${y + 34}" viewBox="0 -24 ${width} ${y + 34}" font-family="sans-serif">` +
    `<rect y="-24" width="${width}" height="${y + 34}" fill="${back}"/><text x="12" y="-6" font-size="14" font-weight="600" fill="${ink}">${escape(chart.data.t)}</text>` +
    `${new XMLSerializer().serializeToString(copy.firstElementChild)}${legend}</svg>`;
};
