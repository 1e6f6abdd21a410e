"use strict";
/* The charts, by Observable Plot: SVG whose colors are the custom properties of the style sheet. Each function returns an element. */

const fill = (name) => `var(--${name})`;
const BASE = { style: { fontSize: "12px", color: "var(--soft)", background: "none" } };

function note(text) { return Object.assign(document.createElement("p"), { textContent: text }); }

const STEPS = 600; // changes of a rate in view that are drawn where they are; of more, the mean in each two pixels

/** Times between which the rate of every channel is constant, in what is shown, but for those less than `least` apart, between which
    it is a mean: a dip narrower than a pixel is no line to the ground. null if there are too many. */
function changes(run, from, to, least = 0) {
  const times = new Set([to]);
  for (const { times: own } of run.rates) {
    const first = above(own, from), after = above(own, to);
    if (after - first > STEPS) return null;
    for (let i = first; i < after; i++) times.add(own[i]);
  }
  const kept = [from];
  for (const time of [...times].sort((a, b) => a - b)) if (time > kept.at(-1) && time - kept.at(-1) >= least) kept.push(time);
  if (kept.length > 1 && kept.at(-1) < to) kept[kept.length - 1] = to; else if (kept.length === 1) kept.push(to);
  return kept.length > STEPS ? null : kept;
}

/** GB/s delivered in what the timeline shows; where times come from a table, the share of its time that the channel is busy. */
function bandwidthChart(run, from, to, width, gutter) {
  const room = Math.max(width - gutter, 50), bins = Math.min(Math.ceil(room / 2), 500), table = run.from_table;
  const edges = changes(run, from, to, (to - from) / room) ?? d3.range(bins + 1).map((i) => from + i * (to - from) / bins);
  const whole = run.bandwidth * run.channels, [unit, of] = table ? ["%", whole / 100] : whole >= 1e12 ? ["TB/s", 1e12] : ["GB/s", 1e9], peak = whole / of, points = [];
  for (let i = 0; i + 1 < edges.length; i++) if (edges[i] < edges[i + 1]) points.push({ at: edges[i], rate: run.rate(edges[i], edges[i + 1]) / of });
  points.push({ at: to, rate: points.at(-1).rate });
  const chart = Plot.plot({
    ...BASE, width, height: 118, marginLeft: gutter, marginRight: 1, marginTop: 20, marginBottom: 6,
    ariaLabel: table ? "Share of the channel in use over time" : "Bandwidth delivered over time", ariaDescription: `In the span that the timeline shows; the peak is ${+peak.toPrecision(4)} ${unit}.`,
    x: { domain: [from, to], axis: null }, y: { domain: [0, peak * 1.04], label: null, ticks: 3, tickSize: 0, grid: true },
    marks: [
      Plot.areaY(points, { x: "at", y: "rate", fill: fill("transfer"), fillOpacity: 0.55, curve: "step-after" }),
      Plot.lineY(points, { x: "at", y: "rate", stroke: fill("compute"), strokeWidth: 1.2, curve: "step-after" }),
      Plot.ruleY([peak], { stroke: fill("soft"), strokeDasharray: "3,3" }),
      Plot.text([table ? "100 %" : `peak ${+peak.toPrecision(4)} ${unit}`], { frameAnchor: "top-right", dy: -16, fill: fill("soft") }),
      Plot.text([table ? "channel busy, %" : `${unit} delivered`], { frameAnchor: "top-left", dy: -16, dx: -gutter, textAnchor: "start", fill: fill("ink"), fontWeight: 600 }),
      Plot.tip(points, Plot.pointerX({ x: "at", y: "rate", title: (d) => `${d.rate.toFixed(2)} ${unit}\n${time(Math.round(d.at))}`, fill: fill("surface") })),
    ],
  });
  return chart;
}

/** The time of the longest bar, ps: how far bars reach. */
const longestBar = (facts) => d3.max(facts.bars, ({ means }) => d3.sum(Object.values(means))) ?? 0;

/** Stacked parts of the time of each token; of very many, means of adjacent ones. most: ps that the scale reaches to, where it is
    shared. */
function breakdownChart({ bars: groups, words: [owner, one], alone }, parts, width, most = longestBar({ bars: groups })) {
  const name = ([sequence, token]) => (alone ? `${token}` : `${sequence}:${token}`);
  const bars = groups.flatMap(({ ends: [first, last], steps, means }, index) => {
    const label = steps > 1 ? `${name(first)} to ${name(last)}, mean` : name(first);
    return parts.filter((part) => means[part]).map((part) => ({ index, label, part, ps: means[part] }));
  });
  const total = groups.length, [unit, scale] = UNITS.find(([, s]) => most >= s) ?? ["ps", 1];
  const labels = d3.rollup(bars, (g) => g[0].label, (d) => d.index);
  const few = total <= 8, room = few ? 46 : 60;
  const options = { ...BASE, width, ariaLabel: "Time of each token, in stacked parts", color: { domain: parts, range: parts.map(fill) } };
  const title = (d) => `${one} ${d.label}\n${words(d.part)} ${time(Math.round(d.ps))}`;
  if (few) { // rows read better than a few fat columns
    return Plot.plot({
      ...options, height: 52 + total * 34, marginLeft: room, marginRight: 16, marginTop: 8, marginBottom: 40,
      y: { label: alone ? one : `${owner}:${one}`, tickSize: 0, tickFormat: (i) => labels.get(i), padding: 0.28 },
      x: { domain: [0, most / scale || 1], label: `${unit} →`, transform: (ps) => ps / scale, ticks: Math.min(8, Math.floor(width / 90)), tickSize: 4, nice: false },
      marks: [Plot.barX(bars, { y: "index", x: "ps", fill: "part", title, tip: { fill: fill("surface") }, insetRight: 0.5 }), Plot.ruleX([0], { stroke: fill("faint") })],
    });
  }
  const every = Math.max(1, Math.ceil(total / Math.max(2, Math.floor((width - room) / 64))));
  return Plot.plot({
    ...options, height: 280, marginLeft: room, marginBottom: 38,
    x: { type: "band", domain: d3.range(total), label: `${alone ? one : `${owner}:${one}`} →`, ticks: d3.range(0, total, every), tickSize: 0, padding: total > 60 ? 0 : 0.15,
      tickFormat: (i) => (i % every ? "" : labels.get(i)?.split(" ")[0]) },
    y: { domain: [0, most / scale || 1], label: `↑ ${unit}`, transform: (ps) => ps / scale, grid: true, tickSize: 0, nice: true },
    marks: [Plot.barY(bars, { x: "index", y: "ps", fill: "part", title, tip: { fill: fill("surface") } }), Plot.ruleY([0], { stroke: fill("faint") })],
  });
}

/** A value over the run: means over equal parts of it. makespan: end of the run, ps. units: of the value, the largest first; per: what
    follows them. The axis has one of them. */
function seriesChart(values, step, makespan, title, { units = [["", 1]], per = "", within = false }, width) {
  const end = Math.min(values.length * step, Math.max(makespan, 1)), last = (values.length - 1) * step;
  // The last part may reach beyond the end of the run: its mean is shown over what is in the run, as it is if `within`.
  const longer = within || end <= last ? 1 : step / (end - last);
  const points = values.map((value, i) => ({ at: i * step, value: i * step === last ? value * longer : value }));
  const [unit, scale] = UNITS.find(([, s]) => end >= s) ?? ["ps", 1];
  points.push({ at: end, value: points.at(-1).value });
  const most = d3.max(points, (d) => d.value), [of, size] = units.find(([, s]) => most >= s) ?? units.at(-1);
  const whole = units[0][0] === "" && most <= 4; // a count: its axis has whole numbers
  const format = (value) => `${(+(value / size).toPrecision(4)).toLocaleString("en")} ${of}${per}`.trim();
  return Plot.plot({
    ...BASE, width, height: 150, marginLeft: 80, marginRight: 8, marginTop: 24, marginBottom: 30, ariaLabel: `${title} over time`,
    x: { domain: [0, end / scale], transform: (at) => at / scale, label: `${unit} →`, ticks: Math.max(2, Math.floor(width / 90)), tickSize: 3 },
    y: { domain: [0, most / size * 1.04 || 1], transform: (value) => value / size, label: null, ticks: whole ? d3.range(0, most + 1) : 3, tickSize: 0, grid: true, tickFormat: (v) => format(v * size) },
    marks: [
      Plot.areaY(points, { x: "at", y: "value", fill: fill("transfer"), fillOpacity: 0.45, curve: "step-after" }),
      Plot.lineY(points, { x: "at", y: "value", stroke: fill("compute"), strokeWidth: 1.2, curve: "step-after" }),
      Plot.text([title], { frameAnchor: "top-left", dy: -18, dx: -78, textAnchor: "start", fill: fill("ink"), fontWeight: 600 }),
      Plot.tip(points, Plot.pointerX({ x: "at", y: "value", title: (d) => `${format(d.value)}\n${time(Math.round(d.at))}`, fill: fill("surface") })),
    ],
  });
}

const QUEUED = "wait_policy", TO_FIRST = "wait_engine", DECODE = "compute"; // colors
const LINES = 60; // requests of a Gantt chart

/** Requests over time: queued, until the first token, and until the last one. Of very many, evenly spaced ones by arrival. apart: of
    how many requests one is in `each`. */
function ganttChart(each, apart, width) {
  const order = [...each].sort((a, b) => a.arrival_ps - b.arrival_ps || a.sequence - b.sequence), every = Math.ceil(order.length / LINES);
  const shown = order.filter((_, i) => i % every === 0), end = d3.max(each, (r) => r.arrival_ps + r.e2e_ps) || 1;
  const [unit, scale] = UNITS.find(([, s]) => end >= s) ?? ["ps", 1], rows = shown.map((r) => r.sequence);
  const spans = shown.flatMap((r) => [[QUEUED, "queued", 0, r.queued_ps], [TO_FIRST, "to the first token", r.queued_ps, r.ttft_ps], [DECODE, "decode", r.ttft_ps, r.e2e_ps]]
    .filter(([, , from, to]) => to > from).map(([color, name, from, to]) => ({ sequence: r.sequence, color, name, from: r.arrival_ps + from, to: r.arrival_ps + to })));
  const tall = Math.max(5, Math.min(18, 420 / shown.length)), labelled = Math.ceil(shown.length / (shown.length * tall / 16));
  return Plot.plot({
    ...BASE, width, height: 64 + shown.length * tall, marginLeft: 52, marginRight: 8, marginTop: 24, marginBottom: 36, ariaLabel: "Requests over time",
    x: { domain: [0, end / scale], transform: (at) => at / scale, label: `${unit} →`, ticks: Math.max(2, Math.floor(width / 90)), tickSize: 3 },
    y: { type: "band", domain: rows, label: null, tickSize: 0, padding: 0.18, ticks: rows.filter((_, i) => i % labelled === 0) },
    marks: [
      Plot.barX(spans, { y: "sequence", x1: "from", x2: "to", fill: (d) => fill(d.color), title: (d) => `request ${d.sequence}: ${d.name}\n${time(d.to - d.from)}, from ${time(d.from)}`, tip: { fill: fill("surface") } }),
      Plot.text([every * apart > 1 ? `requests, one of ${count(every * apart)}` : "requests"], { frameAnchor: "top-left", dy: -18, dx: -50, textAnchor: "start", fill: fill("ink"), fontWeight: 600 }),
    ],
  });
}

/** Shares of requests that are no slower than a time: steps at the times of the requests, of which one of `apart` is there. */
function cdfChart(values, title, apart, width) {
  const sorted = [...values].sort((a, b) => a - b), end = sorted.at(-1) || 1;
  if (sorted[0] === sorted.at(-1)) return note(`${title}: ${time(sorted[0])}, the same for all ${count(sorted.length)} requests${apart > 1 ? " that are shown" : ""}.`);
  const [unit, scale] = UNITS.find(([, s]) => end >= s) ?? ["ps", 1];
  const points = [{ at: 0, share: 0 }, ...sorted.map((at, i) => ({ at, share: 100 * (i + 1) / sorted.length }))];
  return Plot.plot({
    ...BASE, width, height: 206, marginLeft: 80, marginRight: 8, marginTop: 32, marginBottom: 34, ariaLabel: `${title}: share of requests`,
    x: { domain: [0, end * 1.02 / scale], transform: (at) => at / scale, label: `${unit} →`, ticks: Math.max(2, Math.floor(width / 90)), tickSize: 3 },
    y: { domain: [0, 100], label: null, ticks: [0, 50, 90, 100], tickSize: 0, grid: true, tickFormat: (v) => `${v} %` },
    marks: [
      Plot.lineY(points, { x: "at", y: "share", stroke: fill("compute"), strokeWidth: 1.6, curve: "step-after" }),
      Plot.text([`${title}: requests that are no slower${apart > 1 ? `, by one of ${count(apart)}` : ""}`], { frameAnchor: "top-left", dy: -26, dx: -78, textAnchor: "start", fill: fill("ink"), fontWeight: 600 }),
      Plot.tip(points, Plot.pointerX({ x: "at", y: "share", title: (d) => `${d.share.toFixed(1)} %\n${time(Math.round(d.at))} or less`, fill: fill("surface") })),
    ],
  });
}

const CELLS = 28; // rows and columns of the heat map; the table has them all

/** Waits as a matrix: the waiting task in rows, the task that caused the wait in columns. Returns null if there were no waits. */
function blameChart(table, width, own) {
  const { names, wait_ps: waits, alone_ps: alone } = table;
  const all = d3.sum(waits, (row) => d3.sum(row)) + d3.sum(alone);
  if (!all) return null;
  const rowSum = names.map((_, i) => d3.sum(waits[i]) + alone[i]), columnSum = names.map((_, j) => d3.sum(waits, (row) => row[j]));
  const chosen = (sums) => d3.range(names.length).filter((i) => sums[i] > 0).sort((a, b) => sums[b] - sums[a]).slice(0, CELLS);
  const inOrder = (indices) => (/^\d/.test(names[0] ?? "") ? indices.sort((a, b) => a - b) : indices);
  const rows = inOrder(chosen(rowSum)), columns = inOrder(chosen(columnSum)), cells = [];
  for (const i of rows) {
    for (const j of columns) cells.push({ who: names[i], whom: names[j], ps: waits[i][j] });
    if (d3.some(alone, (ps) => ps > 0)) cells.push({ who: names[i], whom: own, ps: alone[i] });
  }
  const largest = d3.max(cells, (d) => d.ps), whom = columns.map((j) => names[j]);
  if (d3.some(alone, (ps) => ps > 0)) whom.push(own);
  const longest = d3.max([...rows.map((i) => names[i]), "x"], (name) => name.length), left = Math.min(150, 18 + longest * 6.6);
  const side = Math.min((width - left - 20) / whom.length, 84), tall = Math.max(18, Math.min(side, 30));
  const name = d3.max(whom, (each) => each.length), flat = name * 7 < side, below = flat ? 26 : Math.min(130, 20 + name * 5.4);
  const shown = side > 44 && rows.length <= 20;
  return Plot.plot({
    ...BASE, width: Math.min(width, left + side * whom.length + 20), height: 24 + tall * rows.length + below,
    marginLeft: left, marginTop: 20, marginBottom: below, marginRight: 20, padding: 0.06, ariaLabel: "What each wait was caused by",
    x: { type: "band", domain: whom, label: null, tickSize: 0, tickRotate: flat ? 0 : side < 40 ? -50 : -35 },
    y: { type: "band", domain: rows.map((i) => names[i]), label: null, tickSize: 0 },
    marks: [
      Plot.cell(cells, { x: "whom", y: "who", fill: fill("band") }),
      Plot.cell(cells.filter((d) => d.ps), { x: "whom", y: "who", fill: fill("heat"), fillOpacity: (d) => 0.06 + 0.94 * Math.sqrt(d.ps / largest),
        title: (d) => `${d.who} waited ${time(d.ps)}\ncaused by ${d.whom}\n${percent(d.ps / all)} of all`, tip: { fill: fill("surface") } }),
      shown ? Plot.text(cells.filter((d) => d.ps > all * 0.005), { x: "whom", y: "who", text: (d) => percent(d.ps / all, 0).replace(" ", "\u2009"),
        fill: (d) => (d.ps > largest * 0.3 ? fill("surface") : fill("ink")), fontSize: 11 }) : null,
      Plot.text(["waiting ↓   caused by →"], { frameAnchor: "top-left", dy: -16, dx: -left + 2, textAnchor: "start", fill: fill("soft") }),
    ],
  });
}

/** Each kind of op under the roofs of the machine, on logarithmic axes. */
function rooflineChart(data, colour, width) {
  const roofs = Object.entries(data.roofs), points = data.kinds.filter((d) => d.intensity), dry = data.kinds.filter((d) => !d.intensity);
  const ridge = roofs.map(([, peak]) => peak / data.bytes_per_s), across = [...points.map((d) => d.intensity), ...ridge];
  if (dry.length) across.push(d3.max(across) * 8);
  const low = d3.min(across) / 3, high = d3.max(across) * 3, top = roofs.length ? d3.max(roofs, (d) => d[1]) : 1;
  const bottom = d3.min([...data.kinds.map((d) => d.flops_per_s), low * data.bytes_per_s, top / 100]) / 3;
  const lines = roofs.flatMap(([name, peak]) => [
    { name, x: low, y: Math.min(peak, low * data.bytes_per_s) }, { name, x: peak / data.bytes_per_s, y: peak }, { name, x: high, y: peak }]);
  const title = (d) => `${d.kind}\n${d.intensity ? `${d.intensity.toPrecision(4)} FLOP/byte` : "no bytes through the channel"}\n${flops(d.flops_per_s)} while active`;
  const radius = d3.scaleSqrt([0, d3.max(data.kinds, (d) => d.active_ps)], [4, 13]);
  const x = (d) => d.intensity ?? high / 3;
  // Dots that coincide would have names on top of each other: those near each other share a label.
  const height = width < 560 ? 340 : 420, margins = { marginLeft: 62, marginRight: 16, marginTop: 28, marginBottom: 40 };
  const long = width - margins.marginLeft - margins.marginRight, tall = height - margins.marginTop - margins.marginBottom;
  const place = (d) => [Math.log(x(d) / low) / Math.log(high / low) * long, Math.log(d.flops_per_s / bottom) / Math.log(top * 2 / bottom) * tall];
  const near = (one, other) => { const [a, b] = place(one), [c, d] = place(other); return Math.abs(b - d) < 16 && Math.abs(a - c) < 90; };
  const clusters = [];
  for (const d of data.kinds) {
    const cluster = clusters.find(([first]) => near(first, d));
    if (cluster) cluster.push(d); else clusters.push([d]);
  }
  const most = width < 560 ? 1 : 3;
  const label = (cluster) => cluster.slice(0, most).map((d) => d.kind).join(", ") + (cluster.length > most ? ` and ${cluster.length - most} more` : "");
  // A label on a roof or its name goes below it, and so does one that would cover another.
  const roofName = ([name, peak]) => `${name} ${flops(peak)}`;
  const boxes = roofs.flatMap((roof) => {
    const y = place({ intensity: high, flops_per_s: roof[1] })[1];
    return [{ from: 0, to: long, y, roof: true }, { from: long - roofName(roof).length * 6.8, to: long, y: y + 11 }];
  });
  const labels = clusters.map((cluster) => {
    const [at, up] = place(cluster[0]), text = label(cluster), wide = text.length * 6.8, gap = radius(cluster[0].active_ps) + 5;
    const flip = x(cluster[0]) > high / 4, from = flip ? at - gap - wide : at + gap; // at the right edge names stand to the left
    let y = up;
    while (boxes.some((box) => from < box.to && from + wide > box.from && Math.abs(box.y - y) < (box.roof ? 9 : 14))) y -= 2;
    boxes.push({ from, to: from + wide, y });
    return { d: cluster[0], text, dx: flip ? -gap : gap, dy: up - y, textAnchor: flip ? "end" : "start" };
  });
  const tens = d3.range(Math.ceil(Math.log10(bottom)), Math.log10(top * 2)).map((power) => 10 ** power);
  return Plot.plot({
    ...BASE, width, height, ...margins,
    ariaLabel: "Roofline: achieved FLOP/s against FLOP/byte of each kind of op",
    x: { type: "log", domain: [low, high], label: "FLOP per byte →", tickFormat: (v) => (d3.precisionFixed(v) >= 0 ? `${+v.toPrecision(3)}` : ""), ticks: width < 560 ? 4 : 8 },
    y: { type: "log", domain: [bottom, top * 2], label: "↑ FLOP/s", tickFormat: "~s", ticks: tens, grid: true, tickSize: 0 },
    r: { type: "identity" },
    marks: [
      Plot.lineY(lines, { x: "x", y: "y", z: "name", stroke: fill("soft"), strokeWidth: 1.5, strokeDasharray: data.nominal ? "4,4" : null }),
      Plot.text(roofs, { x: () => high, y: (d) => d[1], text: roofName, textAnchor: "end", dy: -11, fill: fill("soft") }),
      Plot.text([0], { x: () => low * 1.25, y: () => low * 1.25 * data.bytes_per_s, text: () => bytes(data.bytes_per_s) + "/s", textAnchor: "start", dx: 12, dy: 12, fill: fill("soft") }),
      dry.length ? Plot.text([0], { x: () => high / 3, y: () => bottom, text: () => "no bytes", dy: -8, fill: fill("soft"), stroke: fill("surface"), strokeWidth: 3 }) : null,
      Plot.dot(points, { x, y: "flops_per_s", r: (d) => radius(d.active_ps), fill: (d) => colour(d.kind), fillOpacity: 0.85, stroke: fill("surface") }),
      Plot.dot(dry, { x, y: "flops_per_s", r: (d) => radius(d.active_ps), symbol: "triangle", fill: (d) => colour(d.kind), fillOpacity: 0.85, stroke: fill("surface") }),
      ...labels.map(({ d, text, ...where }) => Plot.text([d], { x, y: "flops_per_s", text: () => text, ...where,
        fill: fill("ink"), stroke: fill("surface"), strokeWidth: 3 })),
      Plot.tip(data.kinds, Plot.pointer({ x, y: "flops_per_s", title, fill: fill("surface") })),
    ],
  });
}
