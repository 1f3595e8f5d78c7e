// Numbers and axes as analysis/figures.py has them.
"use strict";
const short = (value) => {
  if (typeof value === "string") return value;
  const size = Math.abs(value);
  if (size >= 1e15) return String(Number(value.toPrecision(3))).replace("e+", "e");
  for (const [unit, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= unit) return Number((value / unit).toPrecision(3)) + letter;
  }
  return String(Number(value.toPrecision(4)));
};

const ticks = (low, high, log, most) => {
  if (log) {
    let inside = [];
    for (const steps of [[1], [1, 3], [1, 2, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9]]) {
      inside = [];
      for (let d = Math.floor(Math.log10(low)); d <= Math.ceil(Math.log10(high)); d++) {
        for (const s of steps) {
          const v = s * 10 ** d;
          if (v >= low * 0.999 && v <= high * 1.001) inside.push(v);
        }
      }
      if (inside.length >= 3) break;
    }
    if (inside.length >= 2) return inside;
  }
  const step = (high - low) / most, power = 10 ** Math.floor(Math.log10(step));
  const round = [1, 2, 2.5, 5, 10].map((m) => m * power).find((m) => m >= step * 0.999);
  const places = [];
  for (let k = Math.ceil(low / round); k <= Math.floor(high / round + 1e-9); k++) places.push(k * round);
  return places;
};

// Values from low to high as pixels from begin to end, and back.
const axis = (low, high, log, begin, end) => {
  const f = log ? Math.log : (v) => v, g = log ? Math.exp : (v) => v;
  const scale = (end - begin) / (f(high) - f(low));
  return { low, high, log, at: (v) => begin + (f(v) - f(low)) * scale, value: (p) => g(f(low) + (p - begin) / scale) };
};

const limits = (low, high, log) => {
  if (log) {
    const room = high > low ? (high / low) ** 0.02 : 2;
    return [low / room, high * room];
  }
  const room = (high - low) * 0.04 || Math.abs(high) * 0.1 || 1;
  return [low - room, high + room];
};
