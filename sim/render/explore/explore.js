"use strict";
/* The live page. A change of a control asks the server for a run of the scenario so changed, and draws it beside the pinned one. One
   request is under way at a time; of the changes that come meanwhile only the latest is asked for. */

const { controls } = embedded("explore");
const paint = new Paint();
const PAGE = Math.random().toString(36).slice(2); // name of this page, for the server
const PATIENCE = 600; // ms after which a run that is under way gives way to a newer change

// What is chosen: a text for each control, and further assignments.

const given = () => ({ values: Object.fromEntries(controls.map(({ key, given: text }) => [key, text])), more: "" });
let chosen = given(), pinned = null, now = null;

const copyOf = ({ values, more }) => ({ values: { ...values }, more });
const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);
const changed = ({ values }) => controls.filter(({ key, given: text }) => values[key] !== text);
const titled = ({ labels }, text) => labels[text] ?? text;

/** Assignments that turn the scenario into what is chosen, as `--set` takes them. */
function assignments(of) {
  const all = changed(of).flatMap((control) => control.assignments.map((each) => each.replace("{value}", of.values[control.key])));
  return [...new Set([...all, ...lines(of.more)])];
}

/** What is chosen, in words. */
function told(of) {
  const words = [...changed(of).map((control) => `${control.title} ${titled(control, of.values[control.key])}`), ...lines(of.more)];
  return words.length ? words.join(" · ") : "as in the scenario";
}

// The server

async function ask(name, body, signal) {
  let answer;
  try { answer = await fetch(name, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal }); } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer: `sim explore` has ended, and can be started again.");
  }
  const data = await answer.json().catch(() => ({ error: `The server answers with status ${answer.status}.` }));
  if (!answer.ok) throw Object.assign(new Error(data.error ?? ""), { superseded: data.superseded });
  return data;
}

/** Runs what is wanted, the latest wish only. */
class Runner {
  constructor() { this.wanted = null; this.number = 0; this.began = 0; this.busy = false; }

  want(of) {
    this.wanted = copyOf(of);
    if (this.busy && performance.now() - this.began > PATIENCE) this.abort.abort();
    if (!this.busy) this.idle = this.run();
    return this.idle;
  }

  async run() {
    this.busy = true;
    while (this.wanted) {
      const of = this.wanted;
      this.wanted = null; this.began = performance.now(); this.abort = new AbortController();
      try {
        const data = await ask("view", { set: assignments(of), page: PAGE, number: ++this.number }, this.abort.signal);
        const received = performance.now(), run = new Run(data.facts, await unpack(data.facts.layout, data.columns), data.summary);
        show({ of, data, run }, this.began, received);
      } catch (error) { if (!this.wanted && !error.superseded) fail(error); }
    }
    this.busy = false;
  }
}
const runner = new Runner();

// Drawing

/** A run: its figures, timeline, breakdown and bounds. */
class Side {
  constructor(title) {
    this.root = $("side").content.firstElementChild.cloneNode(true);
    this.part = (name) => this.root.querySelector(name);
    this.part("h2").textContent = title;
    this.root.setAttribute("aria-label", title);
    this.title = title;
    $("sides").append(this.root);
  }

  /** Draw a run. other: one to compare it with, or null. whole, most: the ends of scales that both share, ps. */
  show({ of, data, run }, other, whole, most) {
    this.data = data; this.run = run;
    const { summary, facts } = data, sums = Object.entries(facts.sums);
    this.part(".changes").textContent = told(of);
    this.part(".figures").replaceChildren(...figureList(figures(summary, facts), other && figures(other.data.summary, other.data.facts)));
    if (this.timeline) this.timeline.load(run, whole);
    else {
      this.part(".canvas").setAttribute("aria-label", `Timeline, ${this.title}. Arrow keys pan, plus and minus zoom, 0 shows all.`);
      this.timeline = new Timeline(run, paint, { canvas: this.part(".canvas"), scroller: this.part(".scroller"), spacer: this.part(".spacer"), tip: $("tip"), onView: (...view) => this.viewed(...view) });
      this.timeline.load(run, whole);
    }
    this.part("h3").textContent = `Where the time of each ${facts.words[1]} went`;
    this.part(".parts").replaceChildren(...partLegend(sums));
    this.most = most;
    this.part(".bounds").replaceChildren(boundsTable(summary));
    this.draw();
  }

  /** Draw what depends on the width. */
  draw() {
    const box = this.part(".breakdown"), { facts } = this.data;
    box.replaceChildren(breakdownChart(facts, Object.keys(facts.sums), box.clientWidth, this.most));
  }

  viewed(from, to, gutter) {
    drawBandwidth(this.part(".bandwidth"), this.run, from, to, gutter);
    this.part(".seen").textContent = inView(this.run, from, Math.min(to, this.run.makespan_ps));
    for (const { timeline } of sides) if (timeline && timeline !== this.timeline && (timeline.from !== from || timeline.to !== to)) timeline.show(from, to);
  }
}
const sides = [];
const [before, current] = ["Pinned", "Now"].map((title) => { sides.push(new Side(title)); return sides.at(-1); });

const longest = (data) => longestBar(data.facts);

/** Draw a new run, and how long the change took. */
function show(run, began, received) {
  now = run;
  pinned ??= run;
  $("error").hidden = true;
  $("sides").classList.remove("stale");
  mark(null);
  paint.learn([...new Set([now, pinned].flatMap(({ data }) => data.summary.by_kind.map(({ kind }) => kind)))]);
  $("finding").textContent = now.data.finding;
  $("shown").textContent = now.data.command;
  drawSides();
  const { seconds, facts, executor } = now.data, ms = (value) => (value < 9.95 ? `${value.toFixed(1)} ms` : value < 999.5 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(2)} s`), all = performance.now() - began;
  const inside = Object.values(seconds).reduce((a, b) => a + b, 0) * 1000;
  $("latency").textContent = `Redrawn in ${ms(all)}: ${ms(seconds.planned * 1000)} to plan, ${ms(seconds.simulated * 1000)} to simulate ${count(facts.tasks)} tasks (${executor}), ${
    ms((seconds.analyzed + seconds.prepared) * 1000)} to analyze, ${ms(Math.max(received - began - inside, 0))} to send, ${ms(performance.now() - received)} to draw.`;
  document.documentElement.dataset.number = String(runner.number);
}

function drawSides() {
  const both = $("beside").checked && assignments(now.of).join("\n") !== assignments(pinned.of).join("\n");
  before.root.hidden = !both;
  const runs = both ? [now, pinned] : [now];
  const whole = Math.max(...runs.map(({ run }) => run.makespan_ps)), most = Math.max(...runs.map(({ data }) => longest(data)));
  if (both) before.show(pinned, null, whole, most);
  current.show(now, both ? pinned : null, whole, most);
  const shown = both ? [current.timeline, before.timeline] : [current.timeline];
  kindLegend($("kinds"), shown, [...new Set(runs.flatMap(({ data }) => data.summary.by_kind.map(({ kind }) => kind)))]);
  $("palette").options[1].textContent = now.data.facts.words[1] === "step" ? "colors by step, prefill apart" : "colors by token";
}

/** One clear line, and what was drawn last stays, paler. */
function fail(error) {
  $("error").textContent = error.message;
  $("error").hidden = false;
  $("sides").classList.add("stale");
  mark(error.message);
  document.documentElement.dataset.number = String(runner.number);
}

/** Mark the field that an error names; none without an error. */
function mark(message) {
  for (const control of controls) {
    const named = message !== null && chosen.values[control.key] !== control.given && control.assignments.some((each) => message.includes(each.split("=")[0]));
    for (const field of document.querySelectorAll(`[data-key="${control.key}"]`)) if (named) field.setAttribute("aria-invalid", "true"); else field.removeAttribute("aria-invalid");
  }
}

// Controls

/** A quantity in base units, to place it among the stops; NaN for what is none. */
function worth(text, units) {
  const [, number, unit] = /^\s*([\d.]+(?:e[+-]?\d+)?)\s*(.*?)\s*$/i.exec(text) ?? [];
  return Number(number) * (units[unit ?? ""] ?? NaN);
}

/** The stop nearest to a text. */
function nearest({ stops, units }, text) {
  const exact = stops.indexOf(text), value = worth(text, units);
  if (exact >= 0 || !(value >= 0)) return exact;
  return d3.minIndex(stops, (stop) => { const at = worth(stop, units); return Number.isNaN(at) ? Infinity : Math.abs(Math.log((at || 0.5) / (value || 0.5))); });
}

function slider(control) {
  const { key, title, stops } = control, field = make("input", { type: "text", className: "value", id: `f-${key}`, spellcheck: false, autocomplete: "off" });
  const range = make("input", { type: "range", min: 0, max: stops.length - 1, step: 1, id: `r-${key}` });
  field.dataset.key = range.dataset.key = key;
  range.setAttribute("aria-label", title);
  range.oninput = () => choose(key, stops[range.valueAsNumber]);
  field.onchange = () => choose(key, stops.find((stop) => titled(control, stop) === field.value.trim()) ?? field.value.trim());
  const root = make("div", { className: "control" }, make("label", { htmlFor: field.id, textContent: title }), field, range);
  return { root, set: (text) => {
    if (document.activeElement !== field || stops.includes(text)) field.value = titled(control, text);
    const at = nearest(control, text);
    if (at >= 0) range.value = at;
    range.setAttribute("aria-valuetext", titled(control, text));
  } };
}

function list(control) {
  const { key, title, stops } = control, select = make("select", { id: `f-${key}` }, ...stops.map((stop) => new Option(titled(control, stop), stop)));
  select.dataset.key = key;
  select.onchange = () => choose(key, select.value);
  return { root: make("div", { className: "control" }, make("label", { htmlFor: select.id, textContent: title }), select), set: (text) => { select.value = text; } };
}

const fields = new Map();

function makeFields() {
  for (const [group, members] of d3.group(controls, ({ group }) => group)) {
    const box = make("div", { role: "group" }, make("h2", { textContent: group }));
    box.setAttribute("aria-label", group);
    for (const control of members) {
      const field = control.slider ? slider(control) : list(control);
      fields.set(control.key, field);
      box.append(field.root);
    }
    $("groups").append(box);
  }
}

/** Show what is chosen in all fields, keep it in the address, and run it. */
function apply(of) {
  chosen = copyOf(of);
  for (const control of controls) {
    const { root, set } = fields.get(control.key), text = chosen.values[control.key];
    set(text);
    root.classList.toggle("changed", text !== control.given);
  }
  if (document.activeElement !== $("more")) $("more").value = chosen.more;
  const kept = { ...Object.fromEntries(changed(chosen).map(({ key }) => [key, chosen.values[key]])), ...(chosen.more ? { "": chosen.more } : {}) };
  history.replaceState(null, "", Object.keys(kept).length ? `#${encodeURIComponent(JSON.stringify(kept))}` : location.pathname);
  return runner.want(chosen);
}
const choose = (key, text) => apply({ ...chosen, values: { ...chosen.values, [key]: text } });

/** What the address keeps from before. */
function remembered() {
  const of = given();
  try {
    for (const [key, text] of Object.entries(JSON.parse(decodeURIComponent(location.hash.slice(1)) || "{}")))
      if (key === "") of.more = String(text); else if (key in of.values) of.values[key] = String(text);
  } catch { /* an address that was cut off */ }
  return of;
}

// Actions

const say = (text) => { $("done").textContent = text; };

async function copy(text, what) {
  try { await navigator.clipboard.writeText(text); say(`Copied ${what}.`); } catch {
    const dialog = $("copy"), area = dialog.querySelector("textarea");
    area.value = text; dialog.showModal(); area.select();
  }
}

/** An action that may fail: the error is shown where all are. */
const tried = (work) => async () => { say(""); try { await work(); } catch (error) { fail(error); } };

function listen() {
  $("controls").onsubmit = (event) => event.preventDefault();
  $("more").onchange = () => apply({ ...chosen, more: $("more").value });
  $("pin").onclick = () => { if (now) { pinned = now; drawSides(); say("Pinned: what follows is compared with it."); } };
  $("back").onclick = () => { if (pinned) apply(pinned.of); };
  $("reset").onclick = () => apply(given());
  $("yaml").onclick = tried(async () => copy((await ask("yaml", { set: assignments(chosen) })).text, "the scenario"));
  $("command").onclick = tried(async () => { if (now) await copy(now.data.command, "the command"); });
  $("perfetto").onclick = tried(async () => {
    const tab = window.open("", "_blank"); // now, because a browser opens no tab later
    if (tab) tab.opener = null;
    say("Writing the trace …");
    try {
      const { address } = await ask("trace", { set: assignments(chosen) });
      if (tab) { tab.location.href = address; say("Opened in another tab."); } else { say(""); await copy(address, "the address of the trace"); }
    } catch (error) { tab?.close(); say(""); throw error; }
  });
  $("beside").onchange = () => { if (now) drawSides(); };
  const each = (work) => sides.forEach(({ timeline }) => { if (timeline) work(timeline); });
  for (const button of document.querySelectorAll("[data-do]"))
    button.onclick = () => ({ in: () => current.timeline?.zoom(1 / 1.8), out: () => current.timeline?.zoom(1.8), reset: () => current.timeline?.reset() })[button.dataset.do]();
  $("palette").onchange = () => { each((timeline) => timeline.colourBy($("palette").value)); $("kinds").hidden = $("palette").value !== "kind"; };
  $("critical").onchange = () => each((timeline) => { timeline.showCritical = $("critical").checked; timeline.redraw(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => each((timeline) => timeline.theme()));
  let wide = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== wide) { wide = innerWidth; sides.forEach((side) => { if (side.data && !side.root.hidden) side.draw(); }); } });
}

async function main() {
  const wish = remembered();
  makeFields();
  listen();
  await runner.want(given()); // the scenario as it was opened is the first to compare with
  await apply(wish);
  document.documentElement.dataset.ready = "yes";
}

main();
