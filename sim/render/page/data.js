"use strict";
/* What is embedded in the page, unpacked. Times are picoseconds in doubles: exact below 2^53, which is 2.5 hours, and to a few
   picoseconds beyond. */

const embedded = (id) => JSON.parse(document.getElementById(id).textContent);

/** The columns that `columns.py` packed: name -> Float64Array. */
async function unpack(layout, text) {
  const packed = Uint8Array.from(atob(text.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const columns = {};
  let at = 0;
  for (const [name, rows, planes] of layout) {
    const values = new Float64Array(rows);
    for (let plane = 0, scale = 1; plane < planes; plane++, scale *= 256, at += rows)
      for (let i = 0; i < rows; i++) values[i] += bytes[at + i] * scale;
    columns[name] = values;
  }
  return columns;
}

/** The first index whose value is above x, in ascending values. */
function above(values, x) {
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] <= x) low = middle + 1; else high = middle;
  }
  return low;
}

/** A value over time as its integral, linear between points, so that the mean over any span is exact and cheap. */
class Integral {
  constructor(times, totals) { this.times = times; this.totals = totals; }

  /** Of the number of intervals that are open at a time. */
  static ofCount(starts, ends) {
    starts = Float64Array.from(starts).sort(); ends = Float64Array.from(ends).sort();
    const n = starts.length, times = [0], totals = [0];
    let most = 0;
    for (let s = 0, e = 0, open = 0, total = 0, before = 0; e < n;) {
      const now = s < n ? Math.min(starts[s], ends[e]) : ends[e];
      total += open * (now - before); before = now;
      times.push(now); totals.push(total);
      while (e < n && ends[e] === now) { e++; open--; }
      while (s < n && starts[s] === now) { s++; open++; }
      if (open > most) most = open;
    }
    const result = new Integral(Float64Array.from(times), Float64Array.from(totals));
    result.most = most;
    return result;
  }

  at(time) {
    const { times, totals } = this, i = above(times, time);
    if (i === 0) return 0;
    if (i === times.length) return totals[i - 1];
    return totals[i - 1] + (totals[i] - totals[i - 1]) * (time - times[i - 1]) / (times[i] - times[i - 1]);
  }

  mean(from, to) { return (this.at(to) - this.at(from)) / (to - from); }
}

/** The run as the timeline wants it. */
class Run {
  constructor(facts, columns, summary) {
    Object.assign(this, facts);
    this.tokens = summary.tokens;
    this.kinds = summary.by_kind.slice(0, TONES).map(({ kind }) => kind); // those that the overview tells apart
    const { start, wait, queued, moving, rest, launched } = columns, n = start.length;
    Object.assign(this, { step: columns.step, task: columns.task, engine: columns.engine, lane: columns.lane, channel: columns.channel,
      critical: columns.critical, work: columns.work, compute: columns.compute, bytes: columns.bytes });
    this.ready = new Float64Array(n); this.start = new Float64Array(n); this.issued = new Float64Array(n); this.served = new Float64Array(n);
    this.moved = new Float64Array(n); this.end = new Float64Array(n);
    for (let i = 0, now = 0; i < n; i++) {
      now += start[i];
      this.ready[i] = now - wait[i];
      this.start[i] = now;
      this.issued[i] = now + launched[i];
      this.served[i] = now + queued[i];
      this.moved[i] = this.served[i] + moving[i];
      this.end[i] = this.moved[i] + rest[i];
    }
    this.rates = this.#rates(columns);
    this.tones = columns.bin_tone; this.shares = columns.bin_share;
  }

  /** Where part i of the time after the horizon begins, ps. */
  edge(i) { return this.horizon_ps + Math.floor((this.makespan_ps - this.horizon_ps) * i / this.bins); }

  /** What row n, of engines and then channels, did in each part of that time; undefined if every task is shown by itself. */
  overview(n) {
    const part = (values) => values.subarray(n * this.bins, (n + 1) * this.bins);
    return this.tones && { tone: part(this.tones), share: part(this.shares) };
  }

  get length() { return this.start.length; }
  #graph(i) { return this.graphs[this.steps.graph[this.step[i]]]; }
  name(i) { return this.names[this.#graph(i).name[this.task[i]]]; }
  kind(i) { return this.#graph(i).kind[this.task[i]]; }
  layer(i) { return this.#graph(i).layer[this.task[i]]; }
  token(i) { return this.tokens[this.step[i]]; }

  /** For each task the one that its engine ran, and that its channel began to serve, before it; -1 if there is none. */
  get before() {
    const chain = (keep, resource, time) => {
      const found = new Int32Array(this.length).fill(-1), last = new Map(), order = [];
      for (let i = 0; i < this.length; i++) if (keep[i]) order.push(i);
      for (const i of order.sort((a, b) => time[a] - time[b] || a - b)) { found[i] = last.get(resource[i]) ?? -1; last.set(resource[i], i); }
      return found;
    };
    this.made ??= { engine: chain(this.engine, this.engine, this.start), channel: chain(this.lane, this.channel, this.served) };
    return this.made;
  }

  /** Per channel the integral of the share of its bandwidth that it delivers. */
  #rates({ rate_channel: channel, rate_idle: idle, rate_span: span, rate_work: work }) {
    const points = Array.from({ length: this.channels }, () => [[0], [0]]);
    for (let i = 0; i < channel.length; i++) {
      const [times, totals] = points[channel[i]];
      const begin = times.at(-1) + idle[i], total = totals.at(-1);
      if (idle[i]) { times.push(begin); totals.push(total); }
      times.push(begin + span[i]); totals.push(total + work[i]);
    }
    return points.map(([times, totals]) => new Integral(Float64Array.from(times), Float64Array.from(totals)));
  }

  /** Bytes per second, over all channels, on average in a span. */
  rate(from, to) { return this.rates.reduce((sum, each) => sum + each.mean(from, to), 0) * this.bandwidth; }
}

const UNITS = [["s", 1e12], ["ms", 1e9], ["us", 1e6], ["ns", 1e3]];
function time(ps) {
  for (const [unit, size] of UNITS) if (Math.abs(ps) >= size) return `${(ps / size).toFixed(3)} ${unit}`;
  return `${ps} ps`;
}

/** A time on an axis: as many digits as the step between ticks needs. */
function tick(ps, step, largest) {
  const [unit, size] = UNITS.find(([, size]) => largest >= size) ?? ["ps", 1];
  const digits = Math.max(0, Math.ceil(-Math.log10(step / size) - 1e-9));
  return `${(ps / size).toFixed(digits)} ${unit}`;
}

function scaled(value, units) {
  for (const [unit, size] of units) if (Math.abs(value) >= size) return `${(value / size).toPrecision(4)} ${unit}`;
  return `${value} ${units.at(-1)[0].replace(/^k/, "")}`.trim();
}
const BYTES = [["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3], ["B", 1]];
const bytes = (count) => scaled(count, BYTES);
const joules = (fj) => scaled(fj, [["MJ", 1e21], ["kJ", 1e18], ["J", 1e15], ["mJ", 1e12], ["uJ", 1e9], ["nJ", 1e6], ["pJ", 1e3], ["fJ", 1]]);
const flops = (rate) => scaled(rate, [["PFLOP/s", 1e15], ["TFLOP/s", 1e12], ["GFLOP/s", 1e9], ["MFLOP/s", 1e6], ["kFLOP/s", 1e3]]);
const percent = (share, digits = 1) => `${(share * 100).toFixed(digits)} %`;
const WHOLE = new Intl.NumberFormat("en"); // made once: a page has thousands of numbers
const count = (number) => WHOLE.format(number);
const words = (name) => name.replaceAll("_", " ");
