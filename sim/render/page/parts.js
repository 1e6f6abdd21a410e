"use strict";
/* What pages of runs are put together from: colors, tables, figures, bounds, legends. Functions of the summary of a run, which is the
   object that `sim run --json` prints, and of the facts of its timeline. */

const $ = (id) => document.getElementById(id);
const PREFILL = 1; // color of steps that feed in a part of a prompt, where colors are those of tokens
const TONES = 14; // colors of kinds in the style sheet; all later kinds share one
const ROWS = 1000; // most rows of a table

/** Colors of kinds of op, in the order in which they are shown first: by the time they took, which is their order in a summary. */
class Paint {
  constructor() {
    this.names = [...Array.from({ length: TONES }, (_, i) => `k${i}`), "rest"];
    this.ranks = new Map();
  }

  /** Give colors to kinds. Those that have one keep it; if none is left, those of kinds that are not shown any more are free. */
  learn(kinds) {
    const fresh = kinds.filter((kind) => !this.ranks.has(kind));
    if (this.ranks.size + fresh.length > TONES) for (const kind of this.ranks.keys()) if (!kinds.includes(kind)) this.ranks.delete(kind);
    const taken = new Set(this.ranks.values()), free = d3.range(TONES).filter((i) => !taken.has(i));
    for (const kind of fresh) if (free.length) this.ranks.set(kind, free.shift());
    return this;
  }

  kind(name) { return this.ranks.get(name) ?? TONES; }
  step(run, step) { return run.steps.prefill[step] ? PREFILL : [0, 2, 3, 4, 5, 6][step % 6]; } // tokens take turns with six colors

  /** The color of a kind of op, of its own tasks or else of the loads made for it. */
  of(kind) { return `var(--${this.names[this.kind(kind)]})`; }
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** A table. columns: [title, of(row) -> {value, text} or text]; an exact value goes into `data-value`. */
function table(caption, columns, rows, { lead = () => false } = {}) {
  const cell = (row, [, of], i) => {
    const got = of(row), { value, text, node, kind } = typeof got === "object" && got !== null ? got : { text: got };
    const element = i ? make("td") : make("th", { scope: "row" });
    if (kind) element.append(Object.assign(make("i"), { style: `background: ${kind}` }));
    element.append(node ?? text ?? "");
    if (value !== undefined && value !== null) { element.dataset.value = value; if (Number.isInteger(value) && Math.abs(value) > 9999) element.title = count(value); }
    if (got?.prose) element.className = "text";
    return element;
  };
  return make("table", {}, make("caption", { textContent: caption }),
    make("thead", {}, make("tr", {}, ...columns.map(([title]) => make("th", { scope: "col", textContent: title })))),
    make("tbody", {}, ...rows.map((row) => make("tr", { className: lead(row) ? "own" : "" }, ...columns.map((column, i) => cell(row, column, i))))));
}
const ps = (value) => ({ value, text: value === null ? "" : value ? time(value) : "–" });
const num = (value) => ({ value, text: count(value) });
const size = (value) => ({ value, text: value ? bytes(value) : "–" });
const share = (value) => ({ value, text: percent(value) });

/** Figures that say most: name, text, value, and whether it is a share. */
function figures(summary, facts) {
  const { tokens } = summary.requests, { engines, makespan_ps: makespan } = summary, rate = tokens / (makespan / 1e12);
  const busy = engines.reduce((sum, engine) => sum + engine.utilization, 0) / engines.length, shared = (name, value) => [name, percent(value), value, true];
  const entries = [["Makespan", time(makespan), makespan], ["Tokens", count(tokens), tokens],
    ["Tokens per second", rate.toLocaleString("en", { maximumSignificantDigits: 4 }), rate],
    shared(facts.from_table ? "Memory channel busy" : "Memory channel used", summary.memory.utilization), shared("Engines held", busy), shared("Above lower bound", summary.bounds.gap)];
  if (summary.energy) entries.push(["Energy per token", joules(summary.energy.joules_per_token * 1e15), summary.energy.joules_per_token]);
  return entries;
}

/** How far a figure is from the same one of another run. */
function difference(value, before, isShare) {
  const by = isShare ? (value - before) * 100 : (value / before - 1) * 100, digits = Math.abs(by) < 9.95 ? 1 : 0;
  if (!Number.isFinite(by) || Number(by.toFixed(digits)) === 0) return "same";
  const amount = !isShare && by >= 900 ? `${(value / before).toPrecision(3)} times` : `${by > 0 ? "+" : "−"}${Math.abs(by).toFixed(digits)} ${isShare ? "points" : "%"}`;
  return amount;
}

/** The figures as a list; with those of another run, how far each is from it. */
function figureList(entries, others) {
  const before = new Map(others?.map(([name, , value]) => [name, value]));
  return entries.map(([name, text, value, isShare]) => make("div", {}, make("dt", { textContent: name }), make("dd", {}, text,
    ...(before.has(name) ? [make("small", { textContent: difference(value, before.get(name), isShare) })] : []))));
}

function boundsTable({ bounds, makespan_ps: makespan }) {
  return table("Lower bounds hold for any schedule of the same tasks", [["", (r) => r[0]], ["time", (r) => ps(r[1])], ["this run is", (r) => r[2]]], [
    ["this run", makespan, ""],
    ...[["longest path", bounds.critical_path_ps], ["work of the engines", bounds.compute_ps], ["bytes of the channel", bounds.memory_ps], ...(bounds.link_ps === undefined ? [] : [["bytes of the link", bounds.link_ps]]), ...(bounds.arrivals_ps ? [["arrivals and what follows", bounds.arrivals_ps]] : []), ["lower bound: the largest", bounds.lower_ps]]
      .map(([name, value]) => [name, value, value ? makespan / value < 10 ? `${percent(makespan / value - 1)} above` : `${+(makespan / value).toPrecision(3)} times it` : ""]),
    ...(bounds.upper_ps === null ? [] : [["upper bound", bounds.upper_ps, `${percent(1 - makespan / bounds.upper_ps)} below`]]),
  ], { lead: (r) => r[0] === "this run" });
}

function partLegend(sums) {
  const all = sums.reduce((sum, [, each]) => sum + each, 0);
  return sums.map(([part, sum]) => make("span", {}, make("i", { style: `background: var(--${part})` }), `${words(part)} ${percent(sum / all)}`));
}

/** Buttons that highlight a kind on timelines, and the meaning of outlines and hatches. kinds: those that are shown, largest first. */
function kindLegend(box, timelines, kinds) {
  const { paint } = timelines[0], colored = kinds.map((kind) => [kind, paint.kind(kind)]).filter(([, color]) => color < TONES);
  if (colored.length < kinds.length) colored.push([`${kinds.length - colored.length} more`, TONES]);
  const press = () => {
    box.classList.toggle("single", timelines[0].single >= 0);
    buttons.forEach((each, n) => { each.ariaPressed = String(colored[n][1] === timelines[0].single); });
  };
  const buttons = colored.map(([kind, color]) => {
    const button = make("button", { type: "button" }, make("i", { style: `background: var(--${paint.names[color]})` }), kind);
    button.onclick = () => {
      const chosen = timelines[0].single === color ? -1 : color;
      for (const each of timelines) { each.single = chosen; each.redraw(); }
      press();
    };
    return button;
  });
  box.replaceChildren(...buttons);
  if (timelines.some((each) => each.run.execution === "blocking" && each.run.bytes.some((moved) => moved)))
    box.append(make("span", {}, make("i", { className: "hatch" }), "waits for the channel"), make("span", {}, make("i", { className: "pale" }), "loads or stores"));
  press();
}

/** What the timeline has in view, in words. */
function inView(run, from, to) {
  return `${time(Math.round(from))} to ${time(Math.round(to))}, ${count(run.tasks)} tasks${run.shown < run.tasks ? `: the first ${count(run.shown)} one by one, from ${time(run.horizon_ps)} on what each row spent most of each of ${count(run.bins)} parts of the time on` : ""}.`;
}
const drawBandwidth = (box, run, from, to, gutter) =>
  box.replaceChildren(run.rates.some((rate) => rate.times.length > 1) ? bandwidthChart(run, from, to, box.clientWidth, gutter) : note("Nothing moved through the memory channel."));

/** Do work for a section. If it fails, the section says so, and the others are still shown. */
function guarded(id, work) {
  const failed = (error) => { $(id).append(make("p", { className: "note", textContent: `This part could not be shown: ${error.message}` })); };
  try {
    const result = work();
    return result?.catch ? result.catch(failed) : result;
  } catch (error) { return failed(error); }
}
