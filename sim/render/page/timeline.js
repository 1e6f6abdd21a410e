"use strict";
/* The timeline: rows of slices on a canvas. Only what is in view is visited; slices narrower than a pixel merge into the column of
   pixels that they fall in, which takes the colour that has most of it, as opaque as it is full. */

const ROW = 20, GAP = 2, HEAD = 26, AXIS = 26, LANES = 48, SEQUENCES = 32, OVERLAP = 4;
const SHARED = 112; // most pixels of the row of a channel that serves several transfers at once, each in a lane of it

class Timeline {
  /** paint: colors of kinds and steps (`Paint`). onView(from, to, gutter) is called after each drawing. */
  constructor(run, paint, { canvas, scroller, spacer, tip, onView }) {
    Object.assign(this, { paint, canvas, scroller, spacer, tip, onView });
    this.context = canvas.getContext("2d");
    this.widths = new Map();
    this.single = -1;
    this.by = "kind";
    this.showCritical = false;
    this.load(run);
    this.theme();
    this.#listen();
    new ResizeObserver(() => this.resize()).observe(scroller);
    this.resize();
  }

  /** Show a run; what is in view stays, unless it is all. whole: end of all that can be seen, ps, for two runs on one scale. */
  load(run, whole = run.makespan_ps) {
    const all = !this.run || (this.from === 0 && this.to === this.whole);
    this.run = run;
    this.whole = Math.max(whole, 1);
    this.rows = this.#rows();
    this.height = this.rows.length ? this.rows.at(-1).y + this.rows.at(-1).height + 4 : AXIS;
    if (all) { this.from = 0; this.to = this.whole; } else this.show(this.from, this.to);
    if (this.width) this.resize();
  }

  // Rows

  #rows() {
    const { run } = this, rows = [];
    let y = AXIS;
    const add = (row) => { rows.push({ height: ROW, ...row, y }); y += rows.at(-1).height + GAP; };
    const head = (label) => add({ type: "head", label, height: HEAD });
    const where = (keep) => { const found = []; for (let i = 0; i < run.length; i++) if (keep(i)) found.push(i); return found; };

    const engines = Array.from({ length: run.engines }, () => []), channels = new Map(); // of each channel its lanes
    const lanes = (channel) => { if (!channels.has(channel)) channels.set(channel, []); return channels.get(channel); };
    for (let i = 0; i < run.length; i++) {
      if (run.engine[i]) engines[run.engine[i] - 1].push(i);
      if (run.lane[i]) (lanes(run.channel[i])[run.lane[i] - 1] ??= []).push(i);
    }
    head(this.#many("Engines", engines.length, LANES));
    engines.slice(0, LANES).forEach((items, n) => add({ ...this.#slices(run.engine_names[n], items, run.start, run.end, true), bins: run.overview(n) }));
    const complete = run.shown === run.tasks;
    const waiting = where((i) => run.engine[i] && run.start[i] > run.ready[i]);
    if (complete && waiting.length)
      add(this.#count("waiting", "tasks wait for an engine", waiting, run.ready, run.start));

    for (let n = 0; !complete && n < (run.interleaved ? 1 : run.channels); n++) lanes(n); // it may have served later only
    const numbers = [...channels.keys()].sort((a, b) => a - b);
    if (numbers.length) {
      const memory = run.channels > 1 ? "Memory channels" : "Memory channel";
      head(this.#many(numbers.at(-1) < run.channels ? memory : `${memory} and links`, numbers.length, LANES));
      for (const number of numbers.slice(0, LANES)) add(this.#channel(number, channels.get(number)));
      const queued = where((i) => run.lane[i] && run.served[i] > run.issued[i]);
      if (complete && queued.length)
        add(this.#count("waiting", "transfers wait for the channel", queued, run.issued, run.served));
    }
    this.#tokens(head, add);
    return rows;
  }

  #many(title, total, shown) { return total > shown ? `${title} (${shown} of ${total} shown)` : title; }

  #slices(label, items, begin, end, onEngine) {
    return { type: "slices", label, items: Int32Array.from(items), onEngine,
      begin: Float64Array.from(items, (i) => begin[i]), end: Float64Array.from(items, (i) => end[i]), colour: this.#colours(items) };
  }

  /** The row of a channel; transfers that it serves at once are in lanes of that row. */
  #channel(number, lanes) {
    const { run } = this, tall = lanes.length > 1 ? Math.max(3, Math.min(ROW, SHARED / lanes.length)) : ROW;
    const label = number >= run.channels || run.devices > 1 ? run.channel_names[number] : run.channels === 1 ? "channel" : run.interleaved ? "all channels" : `channel ${number}`;
    return { type: "channel", label, height: tall * Math.max(lanes.length, 1), bins: run.overview(Math.min(run.engines, LANES) + number),
      lanes: lanes.map((items, n) => ({ ...this.#slices(label, items.sort((a, b) => run.served[a] - run.served[b]), run.served, run.moved, false),
        top: n * tall, height: tall > 5 && lanes.length > 1 ? tall - 1 : tall })) };
  }

  #colours(items) {
    const { run, paint } = this;
    return Uint8Array.from(items, (i) => (this.by === "kind" ? paint.kind(run.kind(i)) : paint.step(run, run.step[i])));
  }

  /** Colors of tasks: by their `kind`, or by their `token`, where steps that feed in a prompt stand apart. */
  colourBy(what) {
    this.by = what; this.single = -1;
    for (const row of this.rows.flatMap((each) => each.lanes ?? each)) if (row.type === "slices") row.colour = this.#colours(row.items);
    this.redraw();
  }

  #count(label, meaning, items, begin, end) {
    return { type: "count", label, meaning, integral: Integral.ofCount(items.map((i) => begin[i]), items.map((i) => end[i])) };
  }

  /** A row per sequence; tokens of one sequence that overlap (they are known) take turns on rows of their own. */
  #tokens(head, add) {
    const sequences = new Map();
    let left = 0;
    this.run.tokens.forEach((token, i) => {
      if (token.start_ps >= this.run.makespan_ps) return;
      if (!sequences.has(token.sequence)) sequences.set(token.sequence, []);
      const rows = sequences.get(token.sequence);
      let row = rows.find((each) => this.run.tokens[each.at(-1)].end_ps <= token.start_ps);
      if (!row && rows.length < OVERLAP) rows.push(row = []);
      if (row) row.push(i); else left++;
    });
    const { tokens, steps_in_all: all } = this.run, first = tokens.length < all ? `, the first ${count(tokens.length)} of ${count(all)}` : "";
    head(this.#many(this.run.words[1] === "step" ? "Steps" : "Tokens", sequences.size, SEQUENCES) + first + (left ? `, without ${count(left)} that overlap these` : ""));
    for (const [number, rows] of [...sequences].slice(0, SEQUENCES))
      rows.forEach((items, n) => add({ type: "tokens", label: n ? "" : `${this.run.words[0]} ${number}`, items,
        begin: Float64Array.from(items, (i) => this.run.tokens[i].start_ps),
        end: Float64Array.from(items, (i) => Math.min(this.run.tokens[i].end_ps, this.run.makespan_ps)) }));
  }

  // View

  get gutter() { return this.width < 560 ? 70 : 96; }
  get scale() { return (this.width - this.gutter - 1) / (this.to - this.from); }
  timeAt(x) { return this.from + (x - this.gutter) / this.scale; }

  show(from, to) {
    const span = Math.min(Math.max(to - from, Math.min(1000, this.whole)), this.whole);
    from = Math.min(Math.max(from, 0), this.whole - span);
    this.from = from; this.to = from + span;
    this.hide();
    this.redraw();
  }
  zoom(factor, at = (this.from + this.to) / 2) { this.show(at - (at - this.from) * factor, at + (this.to - at) * factor); }
  pan(share) { const by = (this.to - this.from) * share; this.show(this.from + by, this.to + by); }
  reset() { this.show(0, this.whole); }

  resize() {
    const viewport = Math.min(this.height, this.scroller.style.maxHeight === "none" ? Infinity : this.#most());
    const ratio = window.devicePixelRatio || 1;
    this.width = this.scroller.clientWidth;
    this.viewport = viewport;
    this.scroller.style.height = `${viewport}px`;
    this.spacer.style.height = `${this.height}px`;
    this.canvas.style.height = `${viewport}px`;
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(viewport * ratio);
    this.ratio = ratio;
    this.draw(); // at once: a canvas that changed its size is blank
  }
  #most() { const most = parseFloat(getComputedStyle(this.scroller).maxHeight); return Number.isFinite(most) ? most : Infinity; }

  theme() {
    const style = getComputedStyle(document.documentElement), value = (name) => style.getPropertyValue(`--${name}`).trim();
    this.colours = this.paint.names.map(value);
    this.text = this.colours.map((hex) => {
      const [r, g, b] = [1, 3, 5].map((at) => (parseInt(hex.slice(at, at + 2), 16) / 255) ** 2.2);
      return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.2 ? "#14171a" : "#ffffff";
    });
    for (const name of ["ink", "soft", "faint", "line", "surface", "band", "wait", "accent"]) this[name] = value(name);
    this.hatch = this.#pattern();
    this.redraw();
  }

  #pattern() {
    const tile = document.createElement("canvas"), size = 6;
    tile.width = tile.height = size;
    const c = tile.getContext("2d");
    c.strokeStyle = this.wait; c.lineWidth = 1.2;
    c.beginPath();
    for (const shift of [-size, 0, size]) { c.moveTo(shift, size); c.lineTo(shift + size, 0); }
    c.stroke();
    return this.context.createPattern(tile, "repeat");
  }

  // Drawing

  redraw() {
    if (this.pending || !this.rows) return;
    this.pending = requestAnimationFrame(() => { this.pending = 0; this.draw(); });
  }

  draw() {
    const began = performance.now(), c = this.context, top = this.scroller.scrollTop;
    if (!this.width) return;
    c.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    c.clearRect(0, 0, this.width, this.viewport);
    c.textBaseline = "middle";
    const ticks = this.#ticks();
    c.fillStyle = this.line;
    for (const { x } of ticks) c.fillRect(Math.round(x), AXIS - 5, 1, this.viewport);
    for (const row of this.rows) {
      const y = row.y - top;
      if (y + row.height < AXIS || y > this.viewport) continue;
      if (row.type === "head") this.#head(row, y);
      else {
        this.#label(row, y);
        c.save();
        c.beginPath(); c.rect(this.gutter, y, this.width - this.gutter, row.height); c.clip();
        if (row.type === "slices") this.#drawSlices(row, y);
        else if (row.type === "channel") this.#drawChannel(row, y);
        else if (row.type === "count") this.#drawCount(row, y);
        else this.#drawTokens(row, y);
        c.restore();
      }
    }
    this.#axis(ticks);
    this.frame = performance.now() - began;
    this.onView?.(this.from, this.to, this.gutter);
  }

  #font(size, weight = 400) { this.context.font = `${weight} ${size}px system-ui, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif`; }

  #ticks() {
    const room = this.width - this.gutter, step = d3.tickStep(this.from, this.to, Math.max(2, Math.floor(room / 110)));
    return d3.ticks(this.from, this.to, Math.max(2, Math.floor(room / 110)))
      .map((t) => ({ x: this.gutter + (t - this.from) * this.scale, label: t ? tick(t, step, this.to) : "0" }));
  }

  #axis(ticks) {
    const c = this.context;
    c.fillStyle = this.surface; c.fillRect(0, 0, this.width, AXIS - 5);
    this.#font(12); c.fillStyle = this.soft;
    let free = 0;
    for (const { x, label } of ticks) {
      const wide = c.measureText(label).width, at = Math.min(Math.max(x - wide / 2, this.gutter), this.width - wide - 1);
      if (at < free) continue;
      c.fillText(label, at, 8);
      free = at + wide + 12;
    }
    // How much of the whole is in view.
    const room = this.width - this.gutter, share = room / this.whole;
    c.fillStyle = this.line; c.fillRect(this.gutter, AXIS - 8, room, 2);
    if (this.to - this.from < this.whole) {
      c.fillStyle = this.accent;
      c.fillRect(this.gutter + this.from * share, AXIS - 9, Math.max(4, (this.to - this.from) * share), 4);
    }
  }

  #head(row, y) {
    this.#font(12, 600); this.context.fillStyle = this.ink;
    this.context.fillStyle = this.surface; this.context.fillRect(0, y, this.context.measureText(row.label).width + 8, row.height);
    this.context.fillStyle = this.ink; this.context.fillText(row.label, 0, y + row.height / 2 + 3);
  }

  #label(row, y) {
    this.#font(12); this.context.fillStyle = this.soft;
    this.context.fillText(row.label, 0, y + row.height / 2 + 1, this.gutter - 6);
  }

  #drawSlices(row, y) {
    const c = this.context, { begin, end, colour } = row, { from, to, gutter, scale } = this, run = this.run;
    c.fillStyle = this.band; c.fillRect(gutter, y, this.width - gutter, row.height);
    const weights = new Float64Array(this.colours.length), touched = [];
    let column = -1, critical = false;
    let runAt = 0, runLength = 0, runColour = 0, runAlpha = 0; // equal adjacent columns are one rectangle
    const emit = () => {
      if (!runLength) return;
      c.globalAlpha = runAlpha; c.fillStyle = this.colours[runColour];
      c.fillRect(runAt, y, runLength, row.height);
      runLength = 0;
    };
    const flush = () => {
      if (column < 0) return;
      let best = touched[0], full = 0;
      for (const each of touched) { full += weights[each]; if (weights[each] > weights[best]) best = each; }
      const fade = this.single < 0 || weights[this.single] ? 1 : 0.15;
      if (this.single >= 0 && weights[this.single]) best = this.single;
      const alpha = Math.max(0.2, Math.ceil(Math.min(full, 1) * 8) / 8) * fade;
      if (runLength && runAt + runLength === column && runColour === best && runAlpha === alpha) runLength++;
      else { emit(); runAt = column; runLength = 1; runColour = best; runAlpha = alpha; }
      for (const each of touched) weights[each] = 0;
      touched.length = 0;
      if (critical) { emit(); this.#mark(column, y, 1, row.height); }
      column = -1; critical = false;
    };
    const last = begin.length;
    for (let i = above(end, from); i < last && begin[i] < to; i++) {
      const x = gutter + (begin[i] - from) * scale, wide = (end[i] - begin[i]) * scale;
      if (wide < 1.5) {
        const pixel = Math.floor(Math.max(x, gutter));
        if (pixel !== column) { flush(); column = pixel; }
        if (!weights[colour[i]]) touched.push(colour[i]);
        weights[colour[i]] += Math.max(wide, 1e-9);
        if (this.showCritical && run.critical[row.items[i]]) critical = true;
      } else {
        flush(); emit();
        this.#slice(row, i, x, wide, y);
      }
    }
    flush(); emit();
    if (row.bins) this.#drawBins(row.bins, y, row.height);
    c.globalAlpha = 1;
  }

  #drawChannel(row, y) {
    const c = this.context;
    c.fillStyle = this.band; c.fillRect(this.gutter, y, this.width - this.gutter, row.height);
    for (const lane of row.lanes) this.#drawSlices(lane, y + lane.top);
    if (row.bins) this.#drawBins(row.bins, y, row.height);
    c.globalAlpha = 1;
  }

  /** The time after the last task that is shown by itself, in equal parts: the kind that has most of each, as opaque as it is full. */
  #drawBins({ tone, share }, y, height) {
    const c = this.context, { gutter, from, to, scale, run } = this, colour = (i) => this.paint.kind(run.kinds[tone[i]]);
    const edge = (i) => Math.round(gutter + (run.edge(i) - from) * scale);
    const at = (time) => Math.min(Math.max(Math.floor((time - run.horizon_ps) / (run.makespan_ps - run.horizon_ps) * run.bins), 0), run.bins);
    for (let i = at(from), next; i < Math.min(at(to) + 1, run.bins); i = next) {
      const x = edge(i);
      for (next = i + 1; next < run.bins && edge(next) <= x; next++); // of several in a pixel, the first
      if (!share[i]) continue;
      c.globalAlpha = Math.max(0.2, share[i] / 255) * (this.single < 0 || this.single === colour(i) ? 1 : 0.15);
      c.fillStyle = this.colours[colour(i)];
      c.fillRect(x, y, Math.max(edge(next) - x, 1), height);
    }
  }

  /** One slice: what it waited for the channel is hatched, its load an outline, the rest full. */
  #slice(row, i, x, wide, y) {
    const c = this.context, run = this.run, item = row.items[i], { scale, gutter } = this, colour = row.colour[i];
    const fade = this.single < 0 || this.single === colour ? 1 : 0.15, left = Math.max(x, gutter - 2);
    const right = Math.min(x + wide, this.width + 2) - (wide > 4 ? 0.75 : 0);
    c.fillStyle = this.colours[colour];
    if (row.onEngine && run.moved[item] > run.start[item] && run.execution === "blocking") {
      const served = x + (run.served[item] - run.start[item]) * scale, moved = x + (run.moved[item] - run.start[item]) * scale;
      this.#hollow(Math.max(served, left), y, Math.min(moved, right) - Math.max(served, left), row.height, colour, fade);
      c.globalAlpha = fade; c.fillStyle = this.colours[colour];
      if (right > moved) c.fillRect(Math.max(moved, left), y, right - Math.max(moved, left), row.height);
      if (served > left) { c.fillStyle = this.hatch; c.fillRect(left, y, Math.min(served, right) - left, row.height); }
    } else if (!row.onEngine) this.#hollow(left, y, right - left, row.height, colour, fade);
    else {
      c.globalAlpha = fade;
      c.fillRect(left, y, right - left, row.height);
    }
    if (this.showCritical && run.critical[item]) this.#mark(left, y, right - left, row.height);
    if (right - Math.max(left, gutter) > 34 && row.height > 12) {
      const clear = row.onEngine && run.execution === "blocking" ? x + (run.served[item] - run.start[item]) * scale : x; // text on hatches reads badly
      const at = Math.max(left, gutter, right - clear > 34 ? clear : left) + 4, name = this.#fit(run.name(item), right - at - 2);
      c.globalAlpha = fade; c.fillStyle = !row.onEngine || (run.execution === "blocking" && run.moved[item] > run.start[item]) ? this.ink : this.text[colour];
      if (name) c.fillText(name, at, y + row.height / 2 + 1);
    }
    c.globalAlpha = 1;
  }

  /** What only moves bytes: the outline of its color, so that it is told from a kind of a paler one. */
  #hollow(x, y, wide, height, colour, fade) {
    const c = this.context;
    c.fillStyle = this.colours[colour];
    c.globalAlpha = (wide < 6 || height < 6 ? 0.7 : 0.22) * fade; c.fillRect(x, y, wide, height);
    if (wide < 6 || height < 6) return;
    c.globalAlpha = fade; c.strokeStyle = this.colours[colour]; c.lineWidth = 1.5;
    c.strokeRect(x + 0.75, y + 0.75, wide - 1.5, height - 1.5);
  }

  #mark(x, y, wide, height) {
    const c = this.context, alpha = c.globalAlpha;
    const thick = Math.min(3, height / 2);
    c.globalAlpha = 1; c.fillStyle = this.ink; c.fillRect(x, y + height - thick, wide, thick);
    c.globalAlpha = alpha;
  }

  /** As much of a text as fits. */
  #fit(text, room) {
    this.#font(11);
    if (!this.widths.has(text)) this.widths.set(text, this.context.measureText(text).width);
    const wide = this.widths.get(text);
    if (wide <= room) return text;
    const fits = Math.floor(text.length * (room - 9) / wide);
    return fits > 2 ? `${text.slice(0, fits)}…` : "";
  }

  #drawCount(row, y) {
    const c = this.context, { gutter, from, scale } = this, most = row.integral.most;
    c.fillStyle = this.band; c.fillRect(gutter, y, this.width - gutter, row.height);
    c.fillStyle = this.wait; c.globalAlpha = 0.85;
    let before = row.integral.at(from);
    for (let x = gutter; x < this.width; x++) {
      const now = row.integral.at(from + (x + 1 - gutter) / scale), height = (now - before) * scale / most * row.height;
      if (height > 0.05) c.fillRect(x, y + row.height - height, 1, height);
      before = now;
    }
    c.globalAlpha = 1;
  }

  #drawTokens(row, y) {
    const c = this.context, { gutter, from, to, scale } = this;
    let reached = -1;
    for (let i = above(row.end, from); i < row.begin.length && row.begin[i] < to; i++) {
      const x = Math.max(gutter - 2, gutter + (row.begin[i] - from) * scale), right = Math.min(this.width + 2, gutter + (row.end[i] - from) * scale);
      if (right < reached + 0.6) continue; // what falls into a pixel that is painted already
      reached = right;
      const item = row.items[i], tinted = this.by === "token" || this.run.steps.prefill[item];
      c.fillStyle = this.band; c.fillRect(x, y + 2, Math.max(right - x - 1, 0.6), row.height - 4);
      if (tinted) {
        c.globalAlpha = 0.45; c.fillStyle = this.colours[this.paint.step(this.run, item)];
        c.fillRect(x, y + 2, Math.max(right - x - 1, 0.6), row.height - 4); c.globalAlpha = 1;
      }
      c.strokeStyle = this.faint; c.lineWidth = 1;
      if (right - x > 3) c.strokeRect(Math.round(x) + 0.5, y + 2.5, right - x - 2, row.height - 5);
      if (right - Math.max(x, gutter) > 24) {
        const at = Math.max(x, gutter) + 5, token = this.run.tokens[row.items[i]];
        c.fillStyle = tinted ? this.ink : this.soft;
        const name = this.#fit(`${this.run.words[1]} ${token.token}`, right - at) || this.#fit(String(token.token), right - at);
        if (name) c.fillText(name, at, y + row.height / 2 + 1);
      }
    }
  }

  // Input

  #listen() {
    const { canvas, scroller } = this, pointers = new Map();
    let moved = false;
    scroller.addEventListener("scroll", () => this.redraw());
    canvas.addEventListener("wheel", (event) => {
      const sideways = Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey;
      if (sideways) { event.preventDefault(); this.pan((event.deltaX || event.deltaY) / this.width); }
      else if (event.ctrlKey || event.metaKey || document.activeElement === canvas) {
        event.preventDefault();
        this.zoom(Math.exp(Math.max(-60, Math.min(60, event.deltaY)) * (event.ctrlKey ? 0.008 : 0.004)), this.timeAt(this.#x(event)));
      }
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => { pointers.set(event.pointerId, this.#x(event)); moved = false; canvas.setPointerCapture(event.pointerId); });
    canvas.addEventListener("pointermove", (event) => {
      const x = this.#x(event), before = pointers.get(event.pointerId);
      if (before === undefined) { this.#hover(event); return; }
      if (pointers.size === 1) {
        if (!moved && Math.abs(x - before) < 3) return;
        moved = true; canvas.classList.add("drag");
        const by = (before - x) / this.scale;
        this.show(this.from + by, this.to + by);
      } else { // pinch: the times under both fingers stay there
        const other = [...pointers].find(([id]) => id !== event.pointerId)[1], apart = Math.max(8, Math.abs(before - other));
        this.zoom(apart / Math.max(8, Math.abs(x - other)), this.timeAt((x + other) / 2));
      }
      pointers.set(event.pointerId, x);
    });
    const up = (event) => { pointers.delete(event.pointerId); canvas.classList.remove("drag"); if (event.pointerType !== "mouse" && !moved) this.#hover(event); };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", up);
    canvas.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") { this.pointed = undefined; this.hide(); } }); // a finger leaves with each tap
    canvas.addEventListener("dblclick", (event) => this.zoom(event.shiftKey ? 3 : 1 / 3, this.timeAt(this.#x(event))));
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const key = event.key.toLowerCase(), centre = this.pointed ?? (this.from + this.to) / 2;
      const letters = { a: () => this.pan(-0.15), d: () => this.pan(0.15), w: () => this.zoom(1 / 1.5, centre), s: () => this.zoom(1.5, centre) };
      const act = letters[key] ?? { ArrowLeft: () => this.pan(-0.15), ArrowRight: () => this.pan(0.15), "+": () => this.zoom(1 / 1.5), "=": () => this.zoom(1 / 1.5),
        "-": () => this.zoom(1.5), 0: () => this.reset(), Escape: () => { this.hide(); canvas.blur(); },
        Home: () => this.show(0, this.to - this.from), End: () => this.show(this.whole - (this.to - this.from), this.whole) }[event.key];
      if (act) { event.preventDefault(); act(); return; }
      if ((event.key === "ArrowDown" || event.key === "ArrowUp") && this.height > this.viewport) {
        event.preventDefault(); scroller.scrollTop += (event.key === "ArrowDown" ? 3 : -3) * (ROW + GAP);
      }
    });
  }

  #x(event) { return event.clientX - this.canvas.getBoundingClientRect().left; }

  hide() { this.tip.hidden = true; }

  #hover(event) {
    const box = this.canvas.getBoundingClientRect(), x = event.clientX - box.left;
    this.pointed = x > this.gutter ? this.timeAt(x) : undefined;
    const y = event.clientY - box.top + this.scroller.scrollTop;
    const row = x > this.gutter && this.rows.find((each) => y >= each.y && y < each.y + each.height);
    const found = row && this.#tell(row, this.timeAt(x), y - row.y);
    if (!found) { this.hide(); return; }
    const [title, about, facts] = found, list = document.createElement("dl");
    for (const [name, value] of facts) {
      list.append(Object.assign(document.createElement("dt"), { textContent: name }), Object.assign(document.createElement("dd"), { textContent: value }));
    }
    this.tip.replaceChildren(Object.assign(document.createElement("b"), { textContent: title }), Object.assign(document.createElement("small"), { textContent: about }), list);
    this.tip.hidden = false;
    const { width, height } = this.tip.getBoundingClientRect();
    this.tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
    this.tip.style.top = `${event.clientY + 18 + height > innerHeight ? Math.max(8, event.clientY - height - 12) : event.clientY + 18}px`;
  }

  /** What a row shows at a time, `down` pixels from its top: title, subtitle, facts. */
  #tell(row, at, down) {
    if (row.type === "count") {
      const span = 1 / this.scale;
      return [row.label, row.meaning, [["on average, at this pixel", row.integral.mean(Math.max(0, at - span / 2), at + span / 2).toFixed(2)], ["at most", count(row.integral.most)]]];
    }
    if (row.type === "head") return null;
    const slack = 2 / this.scale, later = Math.floor((at - this.run.horizon_ps) / (this.run.makespan_ps - this.run.horizon_ps) * this.run.bins);
    if (row.bins && later >= 0 && later < this.run.bins) {
      const share = row.bins.share[later] / 255, rank = row.bins.tone[later];
      return [row.label, `one of ${count(this.run.bins)} parts`, [["from", time(this.run.edge(later))], ["to", time(this.run.edge(later + 1))], ["busy", percent(share, 0)],
        ...(share ? [["mostly", this.run.kinds[rank] ?? "other kinds"]] : [])]];
    }
    if (row.type === "channel") { const lane = row.lanes.find(({ top, height }) => down >= top && down < top + height); return lane ? this.#tell(lane, at, 0) : null; }
    const i = Math.min(above(row.end, at - slack), row.begin.length - 1);
    if (i < 0 || row.begin[i] > at + slack || row.end[i] < at - slack) return null;
    if (row.type === "tokens") {
      const token = this.run.tokens[row.items[i]];
      const parts = Object.entries(token.breakdown_ps).filter(([, ps]) => ps).map(([name, ps]) => [words(name), time(ps)]);
      const feeds = this.run.steps.prefill[row.items[i]] ? ", feeds in a prompt" : "";
      return [`${this.run.words[1]} ${token.token}`, `${this.run.words[0]} ${token.sequence}${feeds}`, [["from", time(token.start_ps)], ["took", time(token.end_ps - token.start_ps)], ...parts]];
    }
    return this.tell(row.items[i]);
  }

  /** Name of another task, with its token if that is another one. */
  #named(other, item) {
    const run = this.run, its = run.token(other), mine = run.token(item);
    if (its === mine) return run.name(other);
    return `${run.words[1]} ${its.sequence === mine.sequence ? "" : `${its.sequence}.`}${its.token}'s ${run.name(other)}`;
  }

  /** What a task did: title, subtitle, facts. */
  tell(item) {
    const run = this.run, token = run.token(item), layer = run.layer(item), held = run.engine[item] > 0;
    const about = [`${run.words[1]} ${token.sequence}.${token.token}`, layer >= 0 ? `layer ${layer}` : "", held ? run.engine_names[run.engine[item] - 1] : "by DMA"];
    const facts = [["from", time(run.start[item])], ["to", time(run.end[item])], ["took", time(run.end[item] - run.start[item])]];
    const fact = (name, ps) => { if (ps > 0) facts.push([name, time(ps)]); };
    const before = (table, waited) => { if (waited > 0 && table[item] >= 0) facts.push(["behind", this.#named(table[item], item)]); };
    fact(held ? "waited for an engine" : "until it fit SRAM", run.start[item] - run.ready[item]);
    if (held) before(run.before.engine, run.start[item] - run.ready[item]);
    fact("launch", run.issued[item] - run.start[item]);
    fact("waited for the channel", run.served[item] - run.issued[item]);
    before(run.before.channel, run.served[item] - run.issued[item]);
    fact("transfer", run.moved[item] - run.served[item]);
    fact("at full speed", run.work[item]);
    fact("compute", run.compute[item]);
    if (run.bytes[item]) facts.push(["bytes", bytes(run.bytes[item])]);
    if (run.critical[item]) facts.push(["critical path", "yes"]);
    return [run.name(item), about.filter(Boolean).join(" · "), facts];
  }
}
