"use strict";
/* Puts the page together from the JSON embedded in it. */

const summary = embedded("summary"), analyses = embedded("analyses");
const facts = embedded("timeline-data"), paint = new Paint().learn(summary.by_kind.map(({ kind }) => kind));

function help() {
  const help = analyses.what_if;
  $("help").hidden = !help;
  if (help) {
    const most = Math.max(...help.changes.map((c) => c.speedup ?? 1));
    const bar = (c) => make("span", { className: "bar", style: `width: ${Math.round(90 * Math.max(0, (c.speedup ?? 1) - 1) / Math.max(most - 1, 0.05))}px` });
    const serves = help.as_it_is.ttft_ps !== null, open = serves && help.load !== null;
    $("help").classList.toggle("wide", serves);
    const rate = (c) => ({ value: c.sustained_per_s, text: c.sustained_per_s === null ? "" : `${c.sustained_per_s.toLocaleString("en", { maximumSignificantDigits: 3 })}/s` });
    const title = `The same scenario on a machine changed in one way${serves ? "; TTFT and TPOT are medians" : ""}${open ? ", the speed-up is that of the rate that is sustained" : ""}`;
    $("help-table").append(table(title, [["change", (c) => c.change], ["makespan", (c) => ps(c.makespan_ps)],
      ...(serves ? [["TTFT", (c) => ps(c.ttft_ps)], ["TPOT", (c) => ps(c.tpot_ps)]] : []), ...(open ? [["sustains", rate]] : []),
      ["speed-up", (c) => ({ value: c.speedup, text: c.speedup === null ? "" : `${c.speedup.toFixed(2)}×` })],
      ["", (c) => ({ node: c.note ? make("span", { textContent: c.note }) : bar(c), prose: true })]], serves ? [help.as_it_is, ...help.changes] : help.changes,
      { lead: (c) => c === help.as_it_is }));
  }
}

function path() {
  const { critical_path: path, makespan_ps: makespan } = summary;
  $("path").hidden = !path;
  if (!path) return;
  const shares = (title, sums) => table(title, [["", (r) => r[0]], ["time", (r) => ps(r[1])], ["share", (r) => percent(r[1] / (makespan || 1))]], Object.entries(sums).slice(0, ROWS));
  $("path-lead").textContent = `The ${count(path.tasks)} tasks that decided when the run ended; shortening anything else changes nothing, until another path is as long.`;
  $("path-resource").append(shares("By resource", path.by_resource_ps));
  $("path-kind").append(shares("By kind", path.by_kind_ps));
}

function kinds() {
  $("kind-table").append(table("Sums over all tasks", [["kind", (k) => ({ text: k.kind, kind: paint.of(k.kind) })], ["tasks", (k) => num(k.tasks)],
    ["on engines", (k) => ps(k.compute_ps)], ["on the channel", (k) => ps(k.transfer_ps)], ["bytes", (k) => size(k.bytes)]], summary.by_kind.slice(0, ROWS)));
}

function machine() {
  const { memory, links } = summary;
  $("engine-table").append(table("Time that engines were held", [["engine", (e) => e.name], ["held", (e) => ps(e.busy_ps)], ["of the run", (e) => share(e.utilization)]], summary.engines.slice(0, 64)));
  $("memory-table").append(table("Memory", [["", (r) => r[0]], ["", (r) => r[1]]], [["read", size(memory.bytes_read)], ["written", size(memory.bytes_written)],
    ["channel serving", ps(memory.busy_ps)], ["of its bandwidth", share(memory.utilization)],
    ...Object.entries(links?.bytes_tiers ?? (links?.bytes_host === undefined ? {} : { host: links.bytes_host }))
      .map(([tier, bytes]) => [`to and from the ${tier}`, size(bytes)])]));
}

function checks() {
  $("checks").textContent = `${summary.checks.length} invariants were checked on this run and hold: ${summary.checks.join("; ")}.`;
}


/** Title of a table of steps, which has the first of them. */
function firstSteps() {
  const all = facts.steps_in_all, [, one] = facts.words;
  return all > ROWS ? `The first ${count(Math.min(ROWS, summary.tokens.length))} of ${count(all)} ${one}s` : `All ${one}s`;
}

function breakdown() {
  const sums = Object.entries(facts.sums), parts = sums.map(([part]) => part), [, one] = facts.words;
  $("breakdown-title").textContent = `Where the time of each ${one} went`;
  $("breakdown-lead").textContent = `Along the critical chain of each ${one}: from its last task back through the input that ended last. The parts sum to its time exactly.`;
  $("breakdown-legend").append(...partLegend(sums));
  const shown = summary.tokens.slice(0, ROWS);
  $("token-table").append(table(firstSteps(),
    [[one, (t) => `${t.sequence}.${t.token}`], ["starts", (t) => ps(t.start_ps)], ["takes", (t) => ps(t.end_ps - t.start_ps)],
      ...parts.map((part) => [words(part), (t) => ps(t.breakdown_ps[part])])], shown));
  return () => $("breakdown-chart").replaceChildren(breakdownChart(facts, parts, $("breakdown-chart").clientWidth));
}

/** What the prefix cache found, as the rest of a sentence; empty without one. */
function cacheUse(found) {
  return found ? `; ${count(found.hits)} of ${count(found.tokens)} tokens of prompts were in the prefix cache, ${count(found.evicted_blocks)} blocks were evicted${
    (found.tiers ?? []).map((tier) => `; ${count(tier.hits)} of these tokens were in the ${tier.name}, to which ${size(tier.bytes_spilled).text} were spilled and from which ${count(tier.evicted_blocks)} blocks were evicted`).join("")}` : "";
}

/** Request metrics; returns the function that draws the charts. A single request has none. */
function requests() {
  const data = summary.requests, { series } = data, some = analyses.requests;
  $("requests").hidden = !some;
  if (!some) return () => {};
  const plain = (value) => value.toLocaleString("en", { maximumSignificantDigits: 4 });
  const left = data.count - data.counted;
  $("requests-lead").textContent = `${count(data.counted)} requests${left ? `, ${count(left)} more in the warm-up` : ""}; ${plain(data.in_system)} in the system on average; `
    + `${plain(data.tokens_per_s)} tokens/s and ${plain(data.requests_per_s)} requests/s${cacheUse(data.prefix_cache)}${
      data.fairness.slowdown === null ? "" : `; Jain's fairness index ${data.fairness.tokens_per_s.toFixed(3)} of tokens/s, ${data.fairness.slowdown.toFixed(3)} of slowdowns`}.`;
  const goodput = data.goodput, latency = { ttft: "TTFT", tpot: "TPOT", e2e: "end to end" }, percent = (share) => `${(100 * share).toFixed(1)} %`;
  $("requests-goodput").hidden = !goodput;
  if (goodput) {
    const limits = Object.entries(goodput.limits).map(([name, of]) => `${latency[name]} ${ps(of.limit_ps)} (${count(of.met)} of ${count(data.counted)})`);
    $("requests-goodput").textContent = `Goodput ${plain(goodput.per_s)} requests/s: ${percent(goodput.share)} of requests are within ${limits.join(" and ")}; the objective, ${
      goodput.percentile} % of requests, is ${goodput.attained ? "attained" : "not attained"}.`;
  }
  const names = [["time to first token", "ttft_ps"], ["time per output token", "tpot_ps"], ["inter-token latency", "itl_ps"], ["end to end", "e2e_ps"], ["queued", "queued_ps"]];
  $("requests-times").append(table("Percentiles are nearest ranks", [["", (r) => r[0]], ...["mean", "p50", "p90", "p99", "max"].map((of) => [of, (r) => ps(data[r[1]][of])])],
    names.filter(([, key]) => data[key])));
  const word = data.devices ? "device" : "replica";
  const replicas = (data[`${word}s`] ?? []).map((each, number) => ({ ...each, number })), mean = (of) => (of ? ps(of.mean) : "-");
  if (replicas.length) {
    $("requests-replicas").append(table(replicas.length > ROWS ? `The first ${count(ROWS)} of ${count(replicas.length)} ${word}s` : `By ${word}`,
      [[word, (r) => r.number], ["requests", (r) => num(r.requests)], ["tokens", (r) => num(r.tokens)], ["TTFT, mean", (r) => mean(r.ttft_ps)],
        ["TPOT, mean", (r) => mean(r.tpot_ps)], ["end to end, mean", (r) => mean(r.e2e_ps)], ["p99", (r) => (r.e2e_ps ? ps(r.e2e_ps.p99) : "-")]], replicas.slice(0, ROWS)));
  }
  const apart = Math.ceil(data.count / data.each.length); // of how many requests one is here
  $("requests-table").append(table(data.each.length > ROWS ? `The first ${count(ROWS)} of ${count(data.count)}${apart > 1 ? `, one of ${count(apart)}` : ""}` : "All requests",
    [["sequence", (r) => num(r.sequence)], ["arrives", (r) => ps(r.arrival_ps)], ["queued", (r) => ps(r.queued_ps)], ["first token", (r) => ps(r.ttft_ps)],
      ["per token", (r) => ps(r.tpot_ps)], ["end to end", (r) => ps(r.e2e_ps)], ["tokens", (r) => num(r.tokens)],
      ["slowdown", (r) => ({ value: r.slowdown, text: r.slowdown.toFixed(2) })]], data.each.slice(0, ROWS)));
  const shown = [["sequences in a step", series.batch, {}], ["requests in the system", series.in_system, {}],
    ["KV cache", series.kv_bytes.some((v) => v) ? series.kv_bytes : series.kv_tokens, series.kv_bytes.some((v) => v) ? { units: BYTES } : { units: [["tokens", 1]] }],
    ["bytes per second", series.bytes_per_s, { units: BYTES, per: "/s" }]];
  const counted = data.each.filter((r) => r.counted);
  const latencies = [["TTFT", counted.map((r) => r.ttft_ps)], ["TPOT", counted.map((r) => r.tpot_ps).filter((v) => v !== null)]].filter(([, values]) => values.length > 1);
  $("requests-legend").append(...[[QUEUED, "queued"], [TO_FIRST, "to the first token"], [DECODE, "decode"]].map(([color, name]) => make("span", {}, make("i", { style: `background: var(--${color})` }), name)));
  return () => {
    const box = $("requests-charts"), room = box.clientWidth, columns = Math.max(1, Math.floor((room + 24) / 444)), wide = (room - 24 * (columns - 1)) / columns;
    $("requests-gantt").replaceChildren(ganttChart(data.each, apart, $("requests-gantt").clientWidth));
    box.replaceChildren(...latencies.map(([title, values]) => cdfChart(values, title, apart, wide)),
      ...shown.map(([title, values, units]) => seriesChart(values, series.width_ps, summary.makespan_ps, title, units, wide)));
  };
}

/** Energy, where figures of the machine are known; returns the function that draws the chart. */
function energy() {
  const data = summary.energy, [, one] = facts.words;
  $("energy").hidden = !data;
  if (!data) return () => {};
  const fj = (value) => ({ value, text: value ? joules(value) : "–" }), of = (value) => percent(value / (data.total_fj || 1));
  const moved = (row) => (row.memory_fj ?? 0) + (row.link_fj ?? 0), unknown = data.link_unknown ?? [];
  const caused = Object.entries(data.waiting_by_cause_fj ?? {}).flatMap(([resource, causes]) => Object.entries(causes).map(([kind, value]) => [resource, kind, value]));
  $("energy-lead").textContent = `${joules(data.total_fj)} in all, ${joules(data.joules_per_token * 1e15)} per token; ${data.watts.toPrecision(4)} W on average. `
    + "Static power is drawn all along: what of it was drawn while tokens waited is the energy of waiting."
    + (unknown.length ? ` Energy of bytes over the ${unknown.join(" and the ")} is not known, and not counted.` : "");
  const shares = (title, rows) => table(title, [["", (r) => r[0]], ["energy", (r) => fj(r[1])], ["share", (r) => of(r[1])]], rows.filter(([, value]) => value));
  $("energy-parts").append(shares("Where it went", [["arithmetic", data.compute_fj],
    ...Object.entries(data.memory_by_part_fj).map(([part, value]) => [part === "memory" ? "bytes moved" : `bytes moved: ${words(part)}`, value]),
    ...Object.entries(data.link_by_part_fj ?? {}).map(([part, value]) => [`bytes over links: ${words(part)}`, value]),
    ...Object.entries(data.static_by_part_fj).map(([part, value]) => [`static: ${words(part)}`, value])]));
  if (caused.length) $("energy-parts").append(shares("Waiting, by its cause", caused.sort((a, b) => b[2] - a[2]).slice(0, 20)
    .map(([resource, kind, value]) => [`${resource}: ${kind === "alone" ? summary.blame?.alone ?? kind : kind}`, value])));
  $("energy-kinds").append(table("By kind of op", [["kind", (k) => ({ text: k.kind, kind: paint.of(k.kind) })], ["arithmetic", (k) => fj(k.compute_fj)],
    ["bytes moved", (k) => fj(moved(k))], ["share", (k) => of(k.compute_fj + moved(k))]], data.by_kind.filter((k) => k.compute_fj + moved(k))));
  const steps = summary.tokens.slice(0, ROWS).map((t, i) => ({ ...t, ...data.by_token[i] }));
  $("energy-tokens").append(table(firstSteps(),
    [[one, (t) => `${t.sequence}.${t.token}`], ["arithmetic", (t) => fj(t.compute_fj)], ["bytes moved", (t) => fj(moved(t))], ["static", (t) => fj(t.static_fj)]], steps));
  $("energy-machine").append(table("Machine", [["", (r) => r[0]], ["arithmetic or bytes", (r) => fj(r[1])], ["static while held", (r) => fj(r[2])], ["static while idle", (r) => fj(r[3])]], [
    ...data.engines.slice(0, 64).map((e) => [e.name, e.compute_fj, e.static_busy_fj, e.static_idle_fj]), ...data.channels.map((c) => [c.name, moved(c), 0, 0]),
    ["device", 0, data.device_static_fj, 0]]));
  const { width_ps: width, watts } = data.power, box = $("energy-chart");
  return () => box.replaceChildren(seriesChart(watts, width, summary.makespan_ps, "power", { units: [["kW", 1e3], ["W", 1], ["mW", 1e-3]], within: true }, box.clientWidth));
}

function blame() {
  const data = summary.blame;
  $("blame").hidden = !data;
  if (!data) return () => {};
  const waited = (resource) => data[resource].by_kind.wait_ps.flat().concat(data[resource].by_kind.alone_ps).reduce((a, b) => a + b, 0);
  const resources = [["channel", facts.channel_names.length > facts.channels ? "channels and links" : "the memory channel"], ["engine", "an engine"]].filter(([name]) => waited(name));
  $("blame-resource").append(...resources.map(([value, name]) => make("option", { value, textContent: `waits for ${name}` })));
  $("blame-group").append(make("option", { value: "by_kind", textContent: "by kind of op" }), make("option", { value: "by_owner", textContent: `by ${data.owner === "token" ? facts.words[1] : data.owner}` }));
  if (!resources.length) { $("blame-lead").textContent = "No task waited for an engine or for the channel."; $("blame").querySelector(".tools").hidden = true; }
  const show = () => {
    const chosen = data[$("blame-resource").value]?.[$("blame-group").value];
    const surface = $("blame-chart").parentElement;
    surface.hidden = !chosen;
    $("blame").querySelector("details").hidden = !chosen;
    if (!chosen) return;
    const engine = $("blame-resource").value === "engine";
    $("blame-lead").textContent = engine
      ? "While a task waits and all engines are busy, the wait is split equally over the tasks that hold them."
      : "A transfer's wait is split over the transfers that the channel served meanwhile; the part that a transfer alone would lose, too, is listed separately.";
    const entries = chosen.names.flatMap((who, i) => [...chosen.names.map((whom, j) => [who, whom, chosen.wait_ps[i][j]]), [who, data.alone, chosen.alone_ps[i]]])
      .filter(([, , wait]) => wait).sort((a, b) => b[2] - a[2]);
    const [[who, whom, wait]] = entries.length === 1 ? entries : [[]];
    $("blame-chart").replaceChildren(who === undefined ? blameChart(chosen, $("blame-chart").clientWidth, data.alone) : note(`All of it, ${time(wait)}, is ${who} waiting, caused by ${whom}.`));
    $("blame-table").replaceChildren(table(entries.length > 500 ? "The 500 largest" : "Largest first", [["waiting", (r) => r[0]], ["caused by", (r) => r[1]], ["time", (r) => ps(r[2])]], entries.slice(0, 500)));
  };
  $("blame-resource").onchange = $("blame-group").onchange = show;
  return show;
}

/** Operands that held SRAM while loads waited for space, where it is bounded. */
function sram() {
  const data = summary.sram;
  $("sram").hidden = !data?.by_kind.length;
  if (!data?.by_kind.length) return;
  const columns = [["operands", (k) => (k.operand === "weights" ? `${k.kind} weights` : k.operand)],
    ["held on average", (k) => size(Math.round(k.byte_ps / data.wait_ps))], ["of the wait", (k) => share(k.wait_ps / data.wait_ps)]];
  if (data.wait_sram_ps) columns.push(["of it for SRAM itself", (k) => ps(k.wait_sram_ps)]);
  $("sram").append(table(`What SRAM held while loads waited for space; ${bytes(data.most_bytes)} of ${bytes(data.bytes)} in use at most`, columns, data.by_kind.slice(0, ROWS)));
}

function roofline() {
  const data = analyses.roofline, some = data.kinds.length > 0;
  $("roofline-lead").textContent = !some ? "The ops of this run have times, but no FLOPs: there is nothing to place under a roof."
    : `FLOPs of each kind over the bytes it moved, against its rate while any of it ran or was loading; the area of a dot is that time.${
      data.note && ` ${data.note}`}${
      data.kinds.some((k) => k.intensity === null) ? " Triangles moved no bytes through the channel." : ""}`;
  $("roofline-chart").parentElement.hidden = $("roofline").querySelector("details").hidden = !some;
  if (!some) return () => {};
  $("roofline-table").append(table("Kinds of op", [["kind", (k) => k.kind], ["FLOPs", (k) => num(k.flops)], ["bytes", (k) => size(k.bytes)], ["active", (k) => ps(k.active_ps)],
    ["FLOP/byte", (k) => ({ value: k.intensity, text: k.intensity === null ? "–" : k.intensity.toPrecision(4) })], ["rate", (k) => ({ value: k.flops_per_s, text: flops(k.flops_per_s) })]], data.kinds.slice(0, ROWS)));
  return () => $("roofline-chart").replaceChildren(rooflineChart(data, (kind) => paint.of(kind), $("roofline-chart").clientWidth));
}

async function main() {
  const sections = { figures: () => $("figures").append(...figureList(figures(summary, facts))), bounds: () => $("bounds-table").append(boundsTable(summary)),
    help, path, kinds, machine, checks, breakdown, energy, requests, blame, sram, roofline };
  const charts = Object.entries(sections).map(([id, fill]) => [id, guarded(id === "figures" || id === "checks" ? "notes" : id, fill)]).filter(([, draw]) => typeof draw === "function");
  const draw = () => charts.forEach(([id, chart]) => guarded(id, chart));
  draw();
  await guarded("timeline", () => showTimeline(draw));
  document.documentElement.dataset.ready = "yes";
}

async function showTimeline(draw) {
  const run = new Run(facts, await unpack(facts.layout, $("columns").textContent), summary);
  const timeline = new Timeline(run, paint, {
    canvas: $("canvas"), scroller: $("scroller"), spacer: $("spacer"), tip: $("tip"),
    onView: (from, to, gutter) => {
      drawBandwidth($("bandwidth"), run, from, to, gutter);
      $("view").textContent = inView(run, from, to);
    },
  });
  kindLegend($("legend"), [timeline], summary.by_kind.map(({ kind }) => kind));
  for (const button of document.querySelectorAll("[data-do]"))
    button.onclick = () => ({ in: () => timeline.zoom(1 / 1.8), out: () => timeline.zoom(1.8), reset: () => timeline.reset() })[button.dataset.do]();
  if (facts.words[1] === "step") $("palette").options[1].textContent = "colors by step, prefill apart";
  $("palette").onchange = () => { timeline.colourBy($("palette").value); $("legend").hidden = $("palette").value !== "kind"; };
  $("critical").onchange = () => { timeline.showCritical = $("critical").checked; timeline.redraw(); };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => timeline.theme());
  let wide = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== wide) { wide = innerWidth; draw(); } });
  // Paper is white: what is printed is the light page, canvas included.
  const light = (on) => { if (on) document.documentElement.dataset.theme = "light"; else delete document.documentElement.dataset.theme; timeline.theme(); timeline.draw(); };
  addEventListener("beforeprint", () => light(true));
  addEventListener("afterprint", () => light(false));
  globalThis.timeline = timeline; // for the curious, and for tests
}

main();
