// Draws a study from the JSON in the page. All charts show the points that the ranges chosen on the parallel axes keep.
"use strict";
const study = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const count = study.points.number.length;

// Axes and columns alike: name, title, unit, numeric, value(i), text(value).
const axes = study.axes.map((axis, number) => {
  const texts = new Map(axis.values.map((value, i) => [value, axis.texts[i]]));
  return {
    name: axis.key, title: axis.short, unit: "", axis: true, numeric: axis.numeric, order: axis.values,
    value: (i) => study.points.axes[number][i],
    group: (i) => (study.points.groups[number] ?? study.points.axes[number])[i], // near values together, where each has hardly two points
    grouped: study.points.groups[number] !== null,
    text: (value) => texts.get(value) ?? (value === null ? "-" : axis.dimension ? quantity(axis.dimension, value) : String(value)),
  };
}).filter((axis) => new Set(d3.range(count).map(axis.value)).size > 1);
const columns = study.columns.map((column, number) => ({
  name: column.name, title: column.title, unit: column.unit, axis: false, numeric: true,
  value: (i) => study.points.means[number][i], half: (i) => study.points.halves[number][i],
  text: (value) => (column.dimension && value !== null && value !== undefined ? quantity(column.dimension, value) : shown(column.unit, value)),
}));
const objectives = Object.keys(study.objectives).map((name) => columns.find((c) => c.name === name) ?? axes.find((a) => a.name === name)).filter(Boolean);
const fields = [...objectives, ...columns.filter((c) => !objectives.includes(c)), ...axes];

function scaled(value, steps, otherwise) {
  for (const [size, unit] of steps) if (Math.abs(value) >= size) return `${+(value / size).toPrecision(4)} ${unit}`;
  return `${+value.toPrecision(4)} ${otherwise}`.trim();
}
function quantity(base, value) { // between the values of an axis, on a scale
  if (base === "ps" || base === "B") return shown(base, value);
  if (base === "requests per 10^6 s") return scaled(value / 1e6, [], "/s");
  return scaled(value, [[1e15, `P${base}`], [1e12, `T${base}`], [1e9, `G${base}`], [1e6, `M${base}`], [1e3, `k${base}`]], base);
}
function shown(unit, value) {
  if (value === null || value === undefined) return "-";
  if (unit === "ps") return scaled(value, [[1e12, "s"], [1e9, "ms"], [1e6, "us"], [1e3, "ns"]], "ps");
  if (unit === "fJ") return scaled(value, [[1e18, "kJ"], [1e15, "J"], [1e12, "mJ"], [1e9, "uJ"], [1e6, "nJ"], [1e3, "pJ"]], "fJ");
  if (unit === "B") return scaled(value, [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]], "B");
  if (unit === "share") return `${(100 * value).toFixed(1)} %`;
  return `${(+value.toPrecision(5)).toLocaleString("en")}${unit && unit !== "/s" ? ` ${unit}` : ""}`;
}
function quoted(word) { return /^[\w./=+:,[\]%-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`; }
function command(i) {
  const sets = study.axes.map((axis, number) => [axis, study.points.axes[number][i]])
    .filter(([axis, value]) => value !== null && axis.key !== "case" && axis.key !== "seed")
    .map(([axis, value]) => `--set ${quoted(`${axis.key}=${axis.texts[axis.values.indexOf(value)]}`)}`);
  const beside = [...study.again, ...study.points.sets[i]].map(([key, text]) => `--set ${quoted(`${key}=${text}`)}`);
  return ["sim run", quoted(study.base), ...sets, ...beside, `--set seed=${study.points.seed[i]}`].join(" ");
}
async function copy(i) {
  const text = command(i);
  try { await navigator.clipboard.writeText(text); tell(`copied: ${text}`); } catch { window.prompt("Command", text); }
}
function tell(text) { byId("chosen").textContent = text; }

const ranges = new Map(); // field name -> [low, high] on the screen
let kept = d3.range(count);
const usable = (i, ...wanted) => wanted.every((field) => field.value(i) !== null && field.value(i) !== undefined);

function options(id, choices, chosen, draw) {
  const select = byId(id);
  for (const choice of choices) select.append(new Option(choice?.title ?? "none", choice?.name ?? ""));
  select.value = chosen?.name ?? "";
  select.addEventListener("change", draw);
  return () => choices.find((choice) => (choice?.name ?? "") === select.value) ?? null;
}

function label(i, ...more) {
  const lines = axes.map((axis) => `${axis.title}: ${axis.text(axis.value(i))}`);
  const wanted = [...new Set([...objectives, ...more.filter((field) => field && !field.axis)])];
  return [`point ${study.points.number[i]}${study.points.front[i] ? ", on the front" : ""}`, ...lines, ...wanted.map((f) => `${f.title}: ${f.text(f.value(i))}`)].join("\n");
}
/** Whether numbers have so wide a range that most of them would share one end of a linear scale. */
function wide(values) {
  const [low, high] = d3.extent(values);
  return low > 0 && high > 20 * low;
}
function ticks(values, linear) { // 1, 2 and 5 times powers of ten, on a logarithmic scale
  return wide(values) ? d3.scaleLog(d3.extent(values), [0, 1]).ticks(10).filter((v) => [1, 2, 5].includes(Math.round(v / 10 ** Math.floor(Math.log10(v) + 1e-9)))) : linear;
}
function position(field, values) {
  return field.numeric ? { type: wide(values) ? "log" : "linear", ticks: ticks(values, 6) } : { type: "point", domain: field.order };
}

function colors(field, points) {
  if (!field) return () => color("accent");
  if (field.numeric && new Set(points.map(field.value)).size > 8) {
    const extent = d3.extent(points, field.value);
    const scale = (wide(extent) ? d3.scaleSequentialLog : d3.scaleSequential)(extent, d3.interpolateViridis);
    return (i) => scale(field.value(i));
  }
  const names = field.order ?? [...new Set(points.map(field.value))].sort(d3.ascending);
  return (i) => color(`k${Math.max(0, names.indexOf(field.value(i))) % 7}`);
}

function drawFront() {
  const x = frontX(), y = frontY(), by = frontColor();
  const points = kept.filter((i) => usable(i, x, y));
  const fill = colors(by, points);
  const front = points.filter((i) => study.points.front[i]);
  const line = d3.sort(front, x.value);
  const chart = Plot.plot({
    width: width("front-chart"), height: 420, marginLeft: 72, marginBottom: 44, style: { background: "none" },
    x: { ...position(x, points.map(x.value)), label: `${x.title} →`, tickFormat: x.text, grid: true }, y: { ...position(y, points.map(y.value)), label: `↑ ${y.title}`, tickFormat: y.text, grid: true },
    marks: [
      x !== y && objectives.includes(x) && objectives.includes(y) ? Plot.line(line, { x: x.value, y: y.value, stroke: color("faint"), strokeWidth: 1.5, strokeDasharray: "4 3" }) : null,
      Plot.dot(points, {
        x: x.value, y: y.value, fill: (i) => (study.points.feasible[i] ? fill(i) : "none"), stroke: fill, r: (i) => (study.points.front[i] ? 5 : 3),
        fillOpacity: 0.85, symbol: "circle",
      }),
      Plot.tip(points, Plot.pointer({ x: x.value, y: y.value, title: (i) => label(i, x, y, by), fill: color("surface"), stroke: color("line") })),
    ].filter(Boolean),
  });
  chart.addEventListener("click", () => { if (chart.value !== null && chart.value !== undefined) copy(chart.value); });
  byId("front-chart").replaceChildren(chart);
  const unmet = points.filter((i) => !study.points.feasible[i]).length;
  byId("front-lead").textContent = `${points.length.toLocaleString("en")} points, large: the ${front.length} on the front${by ? `; color: ${by.title}` : ""}.`
    + (unmet ? ` Hollow: ${unmet} that miss a constraint.` : "");
}

function drawCurve() {
  const x = curveX(), y = curveY(), by = curveBy() === x ? null : curveBy();
  if (!x) { byId("curves").hidden = true; return; }
  const points = kept.filter((i) => usable(i, x, y)), half = (i) => y.half(i) ?? 0;
  const groups = d3.rollups(points, (group) => ({ mean: d3.mean(group, y.value), low: d3.min(group, (i) => y.value(i) - half(i)), high: d3.max(group, (i) => y.value(i) + half(i)), count: group.length }),
    (i) => (by ? by.group(i) : null), x.group);
  const place = (r) => (x.numeric ? r.at : x.order.indexOf(r.at));
  const rows = d3.sort(groups.flatMap(([name, inner]) => inner.map(([at, s]) => ({ name, at, ...s }))), place);
  const names = by ? (by.order ?? d3.sort(new Set(rows.map((r) => r.name)))).filter((n) => rows.some((r) => r.name === n)) : [null];
  const shade = (r) => (by ? color(`k${names.indexOf(r.name) % 14}`) : color("accent"));
  const of = d3.rollup(rows, ([r]) => r, (r) => r.name, (r) => r.at), along = [...new Set(rows.map(place))].sort(d3.ascending).map((p) => (x.numeric ? p : x.order[p]));
  const whole = names.flatMap((name) => along.map((at) => of.get(name)?.get(at) ?? { name, at, mean: NaN, low: NaN, high: NaN })); // lines end where no point was run
  const chart = Plot.plot({
    width: width("curve-chart"), height: 360, marginLeft: 72, marginRight: 90, marginBottom: 44, style: { background: "none" },
    x: { ...position(x, rows.map((r) => r.at)), label: `${x.title} →`, tickFormat: x.text }, y: { label: `↑ ${y.title}`, tickFormat: y.text, grid: true, zero: d3.min(rows, (r) => r.low) > 0 },
    marks: [
      Plot.areaY(whole, { x: "at", y1: "low", y2: "high", z: "name", fill: shade, fillOpacity: 0.12 }),
      Plot.lineY(whole, { x: "at", y: "mean", z: "name", stroke: shade, strokeWidth: 2 }),
      Plot.dot(rows, { x: "at", y: "mean", fill: shade, r: 3 }),
      by ? Plot.text(apart(rows, 320), { x: "at", y: "y", text: (r) => by.text(r.name), dx: 8, textAnchor: "start", fill: shade }) : null,
      Plot.tip(rows, Plot.pointer({ x: "at", y: "mean", fill: color("surface"), stroke: color("line"),
        title: (r) => `${x.title}: ${x.text(r.at)}${by ? `\n${by.title}: ${by.text(r.name)}` : ""}\n${y.title}: ${y.text(r.mean)}${r.high > r.low ? `\nfrom ${y.text(r.low)} to ${y.text(r.high)}, ${r.count} points` : ""}` })),
    ].filter(Boolean),
  });
  byId("curve-chart").replaceChildren(chart);
  byId("curve-lead").textContent = `Means over all other axes; shaded: from the smallest to the largest of them${study.seeds > 1 ? ", with the intervals over seeds" : ""}.${nearby(x, by)}`;
}

/** The last row of each name, with a place y for its label, a line of text from others that end there, on a chart of so many pixels. */
function apart(rows, pixels) {
  const last = [...new Map(rows.map((r) => [r.name, r])).values()];
  const [low, high] = [Math.min(0, d3.min(rows, (r) => r.low)), d3.max(rows, (r) => r.high)];
  const sign = d3.mean(last, (r) => r.mean) > (low + high) / 2 ? -1 : 1; // away from the nearer edge
  const ends = new Map();
  return d3.sort(last, (r) => sign * r.mean).map((r) => {
    ends.set(r.at, Math.max(sign * r.mean, (ends.get(r.at) ?? -Infinity) + (13 * (high - low)) / pixels));
    return { ...r, y: sign * ends.get(r.at) };
  });
}

function nearby(...shown) { return shown.some((field) => field?.grouped) ? " Values of an axis that are near each other are taken together." : ""; }

function drawHeat() {
  const x = heatX(), y = heatY(), z = heatZ();
  if (axes.length < 2 || !x || !y || x === y) { byId("heat").hidden = axes.length < 2; byId("heat-chart").replaceChildren(); return; }
  const points = kept.filter((i) => usable(i, x, y, z));
  const rows = d3.rollups(points, (group) => d3.mean(group, z.value), x.group, y.group).flatMap(([a, inner]) => inner.map(([b, mean]) => ({ a, b, mean })));
  const across = x.order.filter((v) => rows.some((r) => r.a === v)), down = y.order.filter((v) => rows.some((r) => r.b === v));
  const thin = (domain) => domain.filter((_, i) => i % Math.ceil(domain.length / 14) === 0);
  const low = study.objectives[z.name] !== "max";
  const chart = Plot.plot({
    width: width("heat-chart"), height: Math.max(180, Math.min(560, 60 + 26 * down.length)), marginLeft: 100, marginBottom: 50, style: { background: "none" },
    x: { type: "band", domain: across, ticks: thin(across), tickFormat: x.text, label: `${x.title} →` }, y: { type: "band", domain: down, ticks: thin(down), tickFormat: y.text, label: y.title },
    color: { type: "linear", scheme: "YlGnBu", reverse: low, legend: true, label: z.title, tickFormat: z.text, width: 300, ticks: 4 },
    marks: [
      Plot.cell(rows, { x: "a", y: "b", fill: "mean", inset: 0.5 }),
      Plot.tip(rows, Plot.pointer({ x: "a", y: "b", fill: color("surface"), stroke: color("line"), title: (r) => `${x.title}: ${x.text(r.a)}\n${y.title}: ${y.text(r.b)}\n${z.title}: ${z.text(r.mean)}` })),
    ],
  });
  byId("heat-chart").replaceChildren(chart);
  byId("heat-lead").textContent = `${z.title}: means over all other axes.${nearby(x, y)}`;
}

function drawParallel() {
  const varies = (field) => new Set(d3.range(count).map(field.value)).size > 1;
  const own = columns.filter((c) => study.derived.includes(c.name) && !objectives.includes(c) && varies(c));
  const dims = [...axes, ...objectives.filter((field) => !field.axis), ...own].slice(0, 10);
  const [w, h, top, side] = [width("parallel-chart"), 340, 40, 60];
  const longest = dims[0].numeric ? 0 : d3.max(dims[0].order, (value) => dims[0].text(value).length); // names left of the first axis
  const place = d3.scalePoint(dims.map((d) => d.name), [Math.max(side, Math.min(w / 4, 14 + 7 * longest)), w - side]);
  const scales = new Map(dims.map((d) => {
    const values = d3.range(count).map(d.value).filter((v) => v !== null);
    const ends = [h - 20, top];
    return [d.name, d.numeric ? (wide(values) ? d3.scaleLog : d3.scaleLinear)(d3.extent(values), ends) : d3.scalePoint(d.order, ends)];
  }));
  const svg = d3.create("svg").attr("width", w).attr("height", h).attr("viewBox", [0, 0, w, h]);
  const first = objectives[0];
  const shade = first ? colors(first, d3.range(count).filter((i) => usable(i, first))) : () => color("accent");
  const lines = svg.append("g").attr("class", "lines");
  const step = Math.ceil(count / 2000); // more lines than pixels tell nothing
  const paths = lines.selectAll("path").data(d3.range(0, count, step).filter((i) => usable(i, ...dims))).join("path")
    .attr("d", (i) => d3.line()(dims.map((d) => [place(d.name), scales.get(d.name)(d.value(i))]))).attr("stroke", shade)
    .on("click", (_, i) => copy(i));
  paths.append("title").text((i) => label(i));
  const update = () => {
    kept = d3.range(count).filter((i) => [...ranges].every(([name, [a, b]]) => {
      const d = dims.find((each) => each.name === name), v = d.value(i);
      return v !== null && scales.get(name)(v) >= a && scales.get(name)(v) <= b;
    }));
    const set = new Set(kept);
    paths.attr("stroke-opacity", (i) => (set.has(i) ? 0.55 : 0.03));
    tell(ranges.size ? `${kept.length.toLocaleString("en")} of ${count.toLocaleString("en")} points` : "");
  };
  const axis = svg.append("g").selectAll("g").data(dims).join("g").attr("class", "axis").attr("transform", (d) => `translate(${place(d.name)},0)`);
  axis.each(function (d) {
    const scale = scales.get(d.name), drawn = d3.axisLeft(scale).tickFormat(d.text);
    if (d.numeric) drawn.tickValues(ticks(scale.domain(), scale.ticks(5))); else drawn.tickValues(d.order.filter((_, i) => i % Math.ceil(d.order.length / 8) === 0));
    d3.select(this).call(drawn);
    d3.select(this).append("g").attr("class", "brush").call(d3.brushY().extent([[-10, top], [10, h - 20]]).on("brush end", ({ selection }) => {
      if (selection) ranges.set(d.name, selection); else ranges.delete(d.name);
      update();
      redraw();
    }));
  });
  axis.append("text").attr("class", "name").attr("y", top - 16).attr("text-anchor", "middle").text((d) => d.title);
  update();
  byId("parallel-chart").replaceChildren(svg.node());
}

/** The value that each search found, with its interval, along the first axis. */
function drawSearch() {
  const { find } = study;
  byId("search").hidden = !find;
  if (!find) return;
  byId("search-lead").textContent = `The ${find.title}.`;
  const field = columns.find((c) => c.name === find.key), x = long[0], by = long[1] ?? null;
  table("search-table", [...axes.map((a) => a.title), "mean", "interval", "runs", ""],
    kept.map((i) => cells(document.createElement("tr"), [...axes.map((a) => a.text(a.value(i))), ...find.cells[i]])));
  const rows = field && x ? kept.filter((i) => usable(i, field)).map((i) => ({ i, at: x.value(i), mean: field.value(i), low: find.intervals[i][0], high: find.intervals[i][1], name: by?.value(i) ?? null })) : [];
  if (rows.length < 2) { byId("search-chart").replaceChildren(); return; }
  const names = by ? by.order : [null], shade = (r) => (by ? color(`k${names.indexOf(r.name) % 14}`) : color("accent"));
  byId("search-chart").replaceChildren(Plot.plot({
    width: width("search-chart"), height: 320, marginLeft: 72, marginRight: 90, marginBottom: 44, style: { background: "none" },
    x: { type: "point", domain: x.order, tickFormat: x.text, label: `${x.title} →` }, y: { label: `↑ ${field.title}`, tickFormat: field.text, grid: true, zero: true },
    marks: [
      Plot.ruleX(rows, { x: "at", y1: "low", y2: "high", stroke: shade, strokeWidth: 3, strokeOpacity: 0.4 }),
      Plot.lineY(rows, { x: "at", y: "mean", z: "name", stroke: shade, strokeWidth: 2 }),
      Plot.dot(rows, { x: "at", y: "mean", fill: shade, r: 4 }),
      by ? Plot.text(rows, Plot.selectLast({ x: "at", y: "mean", z: "name", text: (r) => by.text(r.name), dx: 8, textAnchor: "start", fill: shade })) : null,
      Plot.tip(rows, Plot.pointer({ x: "at", y: "mean", fill: color("surface"), stroke: color("line"), title: (r) => `${label(r.i, field)}\n${field.text(r.low)} to ${field.text(r.high)}` })),
    ].filter(Boolean),
  }));
}

function cells(row, values, head) {
  for (const value of values) {
    const cell = document.createElement(head ? "th" : "td");
    cell.textContent = value;
    row.append(cell);
  }
  return row;
}
function table(id, head, rows) {
  const made = document.createElement("table");
  made.createTHead().append(cells(document.createElement("tr"), head, true));
  made.createTBody().append(...rows);
  byId(id).replaceChildren(made);
}
function drawTables() {
  const first = objectives[0], sign = first && study.objectives[first.name] === "max" ? -1 : 1;
  const several = objectives.length > 1;
  const wanted = kept.filter((i) => study.points.feasible[i] && (!several || study.points.front[i]) && (!first || usable(i, first)));
  const best = d3.sort(wanted, (i) => (first ? sign * first.value(i) : 0)).slice(0, 30);
  const listed = [...new Set([...axes, ...objectives, ...columns.filter((c) => study.derived.includes(c.name))])].slice(0, 12);
  const rows = best.map((i) => {
    const row = cells(document.createElement("tr"), [study.points.number[i], ...listed.map((f) => f.text(f.value(i)))]);
    row.dataset.point = i;
    row.title = command(i);
    row.addEventListener("click", () => copy(i));
    return row;
  });
  table("points-table", ["point", ...listed.map((f) => f.title)], rows);
  byId("points-lead").textContent = `${several ? "The front" : "The best points"}${wanted.length > best.length ? `, ${best.length} of ${wanted.length}` : ""}. A press on a row copies its command.`;
  const short = (key) => study.axes.find((axis) => axis.key === key).short;
  const titled = (name) => fields.find((f) => f.name === name)?.title ?? name;
  const changed = (e) => study.changes.find((c) => e.axes.length === 1 && c.axis === e.axes[0] && c.objective === e.objective)?.text ?? "";
  table("effects-table", ["axis", "objective", "part of the variance", "twice as much"],
    study.effects.filter((e) => e.share >= 0.001).slice(0, 24).map((e) => cells(document.createElement("tr"), [e.axes.map(short).join(" × "), titled(e.objective), `${(100 * e.share).toFixed(1)} %`, changed(e)])));
  byId("knees").textContent = study.knees.map((k) => `${short(k.axis)} beyond ${k.value} hardly improves ${titled(k.objective)}: ${(100 * k.gained).toFixed(0)} % of its gain is there.`).join(" ");
}

function figures() {
  const facts = [["points", count.toLocaleString("en")], ["on the front", study.points.front.filter(Boolean).length]];
  if (study.trials !== null) facts.push(["trials", study.trials.toLocaleString("en")]);
  if (study.seeds > 1) facts.push(["seeds each", study.seeds]);
  if (study.constraints.length) facts.push(["meet all constraints", study.points.feasible.filter(Boolean).length.toLocaleString("en")]);
  if (study.skipped) facts.push(["skipped by proof", study.skipped.toLocaleString("en")]);
  if (study.failed) facts.push(["failed", study.failed.toLocaleString("en")]);
  for (const [name, value] of facts) {
    const box = document.createElement("div"), term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    box.append(term, text);
    byId("figures").append(box);
  }
}
function width(id) { return Math.max(320, byId(id).clientWidth || 800); }
function redraw() { drawSearch(); drawFront(); drawCurve(); drawHeat(); drawTables(); }

const numeric = fields.filter((f) => f.numeric);
const cost = objectives[1] ?? axes.find((a) => a.numeric) ?? columns[0];
const frontX = options("front-x", fields, cost, drawFront), frontY = options("front-y", numeric, objectives[0] ?? columns[0], drawFront);
const frontColor = options("front-color", [null, ...axes], axes.find((a) => a !== cost) ?? null, drawFront);
const long = [...axes].sort((a, b) => (b.numeric - a.numeric) || (b.order.length - a.order.length));
const curveX = options("curve-x", axes, long[0], drawCurve), curveY = options("curve-y", numeric.filter((f) => !f.axis), objectives[0], drawCurve);
const curveBy = options("curve-by", [null, ...axes], long.find((a) => a !== long[0] && a.order.length <= 14) ?? null, drawCurve);
const heatX = options("heat-x", axes, long[0], drawHeat), heatY = options("heat-y", axes, long[1], drawHeat), heatZ = options("heat-z", numeric.filter((f) => !f.axis), objectives[0], drawHeat);
byId("all").addEventListener("click", () => { ranges.clear(); drawParallel(); redraw(); });
figures();
drawParallel();
redraw();
let timer;
addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(() => { drawParallel(); redraw(); }, 150); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { drawParallel(); redraw(); });
