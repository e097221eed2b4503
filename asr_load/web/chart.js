// The live charts and the verdict of the Streaming tab, and the same charts in the HTML report.
//
// Locust's own page is a finished React program, and a tab that is added to it can hold a table only. So the charts are
// drawn beside that table, as inline SVG: without a library, and without a build. In the report the data is in the
// page; in the web UI it is asked for every two seconds, only while somebody looks at the tab.
(() => {
  "use strict";

  const TAB = "Streaming";
  const POLL_MS = 2000;
  const MARGIN = { top: 10, right: 40, bottom: 30, left: 60 };
  const NARROW = { ...MARGIN, right: 20, left: 48 }; // below 480 pixels
  const HEIGHT = 236;
  const DRAWN = 600; // points of a line; more than there are pixels
  const DOTTED = 40; // up to so many points, each has its dot
  const GAP_S = 5; // seconds without a point break a line: the process slept
  const SHORTEST_S = 10; // span of the time axis at a test's start
  const [GREEN, RED, ORANGE, VIOLET, BLUE] = ["#00ca5a", "#ff6d6d", "#ff9f00", "#9966CC", "#0099ff"];
  const FAILURES = [RED, ORANGE, VIOLET, BLUE, "#8E4585", "#C8A2C8", "#00ca5a", "#8A2BE2"];
  const ICONS = {
    valid: "M12 2C6.5 2 2 6.5 2 12s4.5 10 10 10 10-4.5 10-10S17.5 2 12 2m-2 15-5-5 1.4-1.4L10 14.2l7.6-7.6L19 8z",
    suspect: "M1 21h22L12 2zm12-3h-2v-2h2zm0-4h-2v-4h2z",
    "client-bound": "M12 2C6.5 2 2 6.5 2 12s4.5 10 10 10 10-4.5 10-10S17.5 2 12 2m1 15h-2v-2h2zm0-4h-2V7h2z",
    failing: "M12 2C6.5 2 2 6.5 2 12s4.5 10 10 10 10-4.5 10-10S17.5 2 12 2m1 15h-2v-2h2zm0-4h-2V7h2z",
    none: "M12 2C6.5 2 2 6.5 2 12s4.5 10 10 10 10-4.5 10-10S17.5 2 12 2m1 15h-2v-6h2zm0-8h-2V7h2z",
  };

  const percentiles = (metric) =>
    [["p50", ORANGE], ["p95", VIOLET], ["p99", RED]].map(([share, color]) => ({
      name: share,
      color,
      value: (point) => point[metric][share],
    }));
  const CHARTS = [
    { title: "TTFT (ms)", series: percentiles("ttft") },
    { title: "ITL (ms)", series: percentiles("itl") },
    { title: "Output Tokens per Second", series: [{ name: "tokens/s", color: GREEN, value: (p) => p.tokens_per_s }] },
    { title: "RTFx (Seconds of Audio per Second)", series: [{ name: "RTFx", color: BLUE, value: (p) => p.rtfx }] },
    { title: "Number of Users", whole: true, series: [{ name: "Number of Users", color: BLUE, value: (p) => p.users }] },
    { title: "Failures per Second", whole: true, bars: true },
  ];

  const escaped = (text) =>
    String(text).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
  const clock = (t) => new Date(t * 1000).toLocaleTimeString();
  const px = (value) => Math.round(value * 10) / 10;

  // A value with three or four digits that count.
  function shown(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    const digits = Number.isInteger(value) || size >= 1000 ? 0 : size >= 100 ? 1 : size >= 1 ? 2 : 4;
    return value.toLocaleString(undefined, { maximumFractionDigits: digits });
  }

  // Round numbers from 0 to just above a maximum, about five of them.
  function ticksUpTo(max, whole) {
    const rough = (max || 1) / 5;
    const power = 10 ** Math.floor(Math.log10(rough));
    let step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999);
    if (whole) step = Math.max(1, Math.ceil(step));
    const count = Math.max(1, Math.ceil((max * 1.02) / step));
    return Array.from({ length: count + 1 }, (_, number) => Number((number * step).toPrecision(12)));
  }

  // Round times of day between two times, at most `most` of them.
  function timesBetween(first, last, most) {
    const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
    const step = steps.find((one) => (last - first) / one <= most) || Math.ceil((last - first) / most / 86400) * 86400;
    const offset = new Date(first * 1000).getTimezoneOffset() * 60;
    const times = [];
    for (let t = Math.ceil((first - offset) / step) * step + offset; t <= last; t += step) times.push(t);
    return times;
  }

  // The points of a line, as runs of [t, value] between gaps. A long test is thinned, but each stretch keeps its lowest
  // and its highest value where they were: no peak is hidden, and none is made up.
  function runsOf(points, value) {
    const stretch = Math.max(1, Math.ceil(points.length / (DRAWN / 2)));
    const runs = [];
    let run = [];
    const end = () => {
      if (run.length) runs.push(run);
      run = [];
    };
    for (let start = 0; start < points.length; start += stretch) {
      let low = null;
      let high = null;
      for (let at = start; at < Math.min(start + stretch, points.length); at++) {
        const v = value(points[at]);
        if (v === null || v === undefined) continue;
        if (low === null || v < low[1]) low = [points[at].t, v];
        if (high === null || v > high[1]) high = [points[at].t, v];
      }
      const before = run.length ? run[run.length - 1][0] : null;
      if (low === null || (before !== null && low[0] - before > GAP_S + 2 * stretch)) end();
      if (low === null) continue;
      if (low[0] === high[0]) run.push(low);
      else run.push(...[low, high].sort((a, b) => a[0] - b[0]));
    }
    end();
    return runs;
  }

  // The bars of the failures: of each stretch, the second with the most.
  function barsOf(points, outcomes) {
    const stretch = Math.max(1, Math.ceil(points.length / DRAWN));
    const sum = (point) => outcomes.reduce((total, name) => total + (point.failures[name] || 0), 0);
    const bars = [];
    for (let start = 0; start < points.length; start += stretch) {
      const part = points.slice(start, start + stretch);
      bars.push(part.reduce((worst, point) => (sum(point) > sum(worst) ? point : worst)));
    }
    return { bars, sum };
  }

  class Chart {
    constructor(plan, host, board) {
      this.plan = plan;
      this.board = board;
      this.off = new Set();
      this.figure = document.createElement("figure");
      this.figure.className = "asr-chart";
      this.figure.innerHTML =
        `<h4>${escaped(plan.title)}</h4><div class="asr-legend"></div>` +
        `<div class="asr-plot"><svg role="img" tabindex="0" height="${HEIGHT}"></svg><div class="asr-tip" hidden></div></div>`;
      this.legend = this.figure.querySelector(".asr-legend");
      this.svg = this.figure.querySelector("svg");
      this.tip = this.figure.querySelector(".asr-tip");
      host.append(this.figure);
      this.legend.addEventListener("click", ({ target }) => {
        const button = target.closest("button");
        if (!button) return;
        const { name } = button.dataset;
        if (!this.off.delete(name)) this.off.add(name);
        this.drawnLegend = null;
        this.draw();
      });
      this.svg.addEventListener("pointermove", (event) => this.point(event.clientX));
      this.svg.addEventListener("pointerdown", (event) => this.point(event.clientX));
      this.svg.addEventListener("pointerleave", () => board.hover(null, this));
      this.svg.addEventListener("blur", () => board.hover(null, this));
      this.svg.addEventListener("keydown", (event) => {
        const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (!by) return;
        event.preventDefault();
        const last = board.points.length - 1;
        const now = board.hovered === null ? last + 1 : board.hovered;
        board.hover(last < 0 ? null : Math.min(last, Math.max(0, now + by)), this);
      });
    }

    series() {
      if (!this.plan.bars) return this.plan.series;
      return this.board.outcomes.map((name, number) => ({
        name,
        color: FAILURES[number % FAILURES.length],
        value: (point) => point.failures[name] || 0,
      }));
    }

    point(clientX) {
      const { points } = this.board;
      if (!points.length || !this.toTime) return;
      const t = this.toTime(clientX - this.svg.getBoundingClientRect().left);
      let [low, high] = [0, points.length - 1];
      while (high - low > 1) {
        const middle = (low + high) >> 1;
        if (points[middle].t < t) low = middle;
        else high = middle;
      }
      this.board.hover(t - points[low].t < points[high].t - t ? low : high, this);
    }

    draw() {
      const { points, stages } = this.board;
      const all = this.series();
      this.drawLegend(all);
      const series = all.filter(({ name }) => !this.off.has(name));
      const width = Math.max(200, this.svg.parentNode.clientWidth);
      const margin = width < 480 ? NARROW : MARGIN;
      const plotWidth = width - margin.left - margin.right;
      const plotHeight = HEIGHT - margin.top - margin.bottom;
      const bottom = margin.top + plotHeight;
      const right = width - margin.right;
      const first = points.length ? points[0].t : Date.now() / 1000 - SHORTEST_S;
      const last = Math.max(first + SHORTEST_S, points.length ? points[points.length - 1].t : 0);
      const x = (t) => px(margin.left + ((t - first) / (last - first)) * plotWidth);

      let max = 0;
      let bars = [];
      const lines = [];
      if (this.plan.bars) {
        const found = barsOf(points, series.map(({ name }) => name));
        bars = found.bars.filter((point) => found.sum(point) > 0);
        max = bars.reduce((most, point) => Math.max(most, found.sum(point)), 0);
        this.barWidth = Math.min(16, Math.max(1.5, (plotWidth / Math.max(found.bars.length, SHORTEST_S)) * 0.7));
      } else {
        for (const one of series) {
          const runs = runsOf(points, one.value);
          lines.push({ ...one, runs });
          for (const run of runs) for (const [, v] of run) if (v > max) max = v;
        }
      }
      const ticks = ticksUpTo(max, this.plan.whole);
      const top = ticks[ticks.length - 1];
      const y = (v) => px(bottom - (v / top) * plotHeight);

      const parts = [];
      for (const tick of ticks) {
        const at = Math.round(y(tick)) + 0.5;
        parts.push(
          `<line class="${tick ? "asr-split" : "asr-axis"}" x1="${margin.left}" x2="${right}" y1="${at}" y2="${at}"/>`,
          `<text x="${margin.left - 8}" y="${at + 4}" text-anchor="end">${escaped(tick.toLocaleString())}</text>`,
        );
      }
      for (const t of timesBetween(first, last, Math.max(1, Math.floor(plotWidth / 80)))) {
        const at = Math.round(x(t)) + 0.5;
        // Half of a label is about 35 pixels: none is cut off at an edge.
        const along = Math.min(Math.max(at, 36), width - 36);
        parts.push(
          `<line class="asr-axis" x1="${at}" x2="${at}" y1="${bottom}" y2="${bottom + 5}"/>`,
          `<text x="${along}" y="${bottom + 18}" text-anchor="middle">${escaped(clock(t))}</text>`,
        );
      }
      const half = (this.barWidth || 0) / 2;
      for (const point of bars) {
        const left = Math.min(Math.max(x(point.t) - half, margin.left), right - 2 * half);
        let height = 0;
        for (const one of series) {
          const count = one.value(point);
          if (!count) continue;
          const from = y(height + count);
          parts.push(
            `<rect class="asr-bar" fill="${one.color}" x="${px(left)}" y="${from}" ` +
              `width="${px(half * 2)}" height="${px(y(height) - from)}"/>`,
          );
          height += count;
        }
      }
      for (const { runs, color } of lines) {
        const path = runs.map((run) => `M${run.map(([t, v]) => `${x(t)},${y(v)}`).join("L")}`).join("");
        if (path) parts.push(`<path class="asr-series" stroke="${color}" d="${path}"/>`);
        const dotted = points.length <= DOTTED;
        for (const run of runs) {
          // A point between two gaps has no line: without its dot it would not be seen.
          for (const [t, v] of dotted || run.length === 1 ? run : [])
            parts.push(`<circle class="asr-dot" stroke="${color}" cx="${x(t)}" cy="${y(v)}" r="2"/>`);
        }
      }
      let free = -Infinity;
      for (const { t, name } of stages) {
        if (t < first - 2 || t > last) continue;
        const at = Math.round(Math.max(x(t), margin.left)) + 0.5;
        parts.push(`<line class="asr-stage-line" x1="${at}" x2="${at}" y1="${margin.top}" y2="${bottom}"/>`);
        const label = String(name);
        if (at < free) continue; // its line stays, its name would lie on the one before
        const room = label.length * 6.5;
        const turn = at + room > width;
        parts.push(
          `<text class="asr-stage" x="${turn ? at - 4 : at + 4}" y="${margin.top + 10}"` +
            ` text-anchor="${turn ? "end" : "start"}">${escaped(label)}</text>`,
        );
        free = at + room + 8;
      }
      if (!points.length || (this.plan.bars && !all.length)) {
        const text = points.length ? "No failures" : "No data yet";
        parts.push(
          `<text class="asr-empty" x="${margin.left + plotWidth / 2}" y="${margin.top + plotHeight / 2}"` +
            ` text-anchor="middle">${text}</text>`,
        );
      }
      parts.push('<g class="asr-hover"></g>');
      this.svg.setAttribute("width", width);
      this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
      this.svg.setAttribute("aria-label", this.inWords(series));
      this.svg.innerHTML = parts.join("");
      this.x = x;
      this.y = y;
      this.drawn = series;
      this.width = width;
      this.toTime = (at) => first + ((at - margin.left) / plotWidth) * (last - first);
      this.mark(this.board.hovered, this.board.over === this);
    }

    drawLegend(all) {
      const key = JSON.stringify([all.map(({ name }) => name), [...this.off]]);
      if (key === this.drawnLegend) return;
      this.drawnLegend = key;
      this.legend.innerHTML = all
        .map(
          ({ name, color }) =>
            `<button type="button" data-name="${escaped(name)}" aria-pressed="${!this.off.has(name)}">` +
            `<i style="background:${color}"></i>${escaped(name)}</button>`,
        )
        .join("");
    }

    inWords(series) {
      const { points } = this.board;
      if (!points.length) return `${this.plan.title}: no data yet`;
      const values = series.map(({ name, value }) => {
        if (this.plan.bars) return `${name} ${points.reduce((sum, point) => sum + value(point), 0)}`;
        let at = points.length - 1;
        while (at > 0 && value(points[at]) === null) at--;
        return `${name} ${shown(value(points[at]))}`;
      });
      const what = this.plan.bars ? "in all" : "at last";
      return `${this.plan.title} from ${clock(points[0].t)} to ${clock(points[points.length - 1].t)}; ${what} ${
        values.join(", ") || "none"
      }`;
    }

    // The crosshair at a point, and the values beside it in the chart that is pointed at.
    mark(index, withTip) {
      const hover = this.svg.querySelector(".asr-hover");
      const point = index === null ? undefined : this.board.points[index];
      if (!hover) return;
      if (!point) {
        hover.innerHTML = "";
        this.tip.hidden = true;
        return;
      }
      const at = Math.round(this.x(point.t)) + 0.5;
      const bottom = HEIGHT - MARGIN.bottom;
      let inside = `<line class="asr-cross" x1="${at}" x2="${at}" y1="${MARGIN.top}" y2="${bottom}"/>`;
      if (!this.plan.bars) {
        for (const { value, color } of this.drawn) {
          const v = value(point);
          if (v !== null && v !== undefined)
            inside += `<circle class="asr-dot" stroke="${color}" cx="${at}" cy="${this.y(v)}" r="4"/>`;
        }
      }
      hover.innerHTML = inside;
      this.tip.hidden = !withTip;
      if (!withTip) return;
      const rows = this.drawn.map(
        ({ name, color, value }) =>
          `<div><i style="background:${color}"></i>${escaped(name)}<b>${escaped(shown(value(point)))}</b></div>`,
      );
      this.tip.innerHTML =
        escaped(new Date(point.t * 1000).toLocaleString()) + (rows.join("") || "<div>No failures</div>");
      const { offsetWidth } = this.tip;
      const left = at + 12 + offsetWidth > this.width ? at - 12 - offsetWidth : at + 12;
      this.tip.style.transform = `translate(${Math.max(0, left)}px, ${MARGIN.top + 14}px)`;
    }
  }

  // All charts of a page: one set of points, one crosshair.
  class Board {
    constructor() {
      this.points = [];
      this.stages = [];
      this.outcomes = [];
      this.hovered = null;
      this.over = null;
      this.root = document.createElement("div");
      this.root.className = "asr-streaming";
      this.grid = document.createElement("div");
      this.grid.className = "asr-grid";
      this.root.append(this.grid);
      this.charts = CHARTS.map((plan) => new Chart(plan, this.grid, this));
      this.widths = new ResizeObserver(() => this.draw());
      this.widths.observe(this.root);
    }

    clear() {
      this.points = [];
      this.outcomes = [];
      this.hovered = null;
    }

    add(points) {
      for (const point of points) {
        this.points.push(point);
        for (const name of Object.keys(point.failures)) if (!this.outcomes.includes(name)) this.outcomes.push(name);
      }
    }

    draw() {
      if (this.root.isConnected && this.root.clientWidth) for (const chart of this.charts) chart.draw();
    }

    hover(index, over) {
      this.hovered = index;
      this.over = over;
      for (const chart of this.charts) chart.mark(index, chart === over);
    }
  }

  // Locust switches its theme without telling anyone: its page's background says which one it is.
  function isDark() {
    const channels = (getComputedStyle(document.body).backgroundColor.match(/[\d.]+/g) || []).map(Number);
    if (channels.length < 3 || channels[3] === 0) {
      if (window.theme) return window.theme === "dark";
      return localStorage.theme === "dark";
    }
    return channels[0] + channels[1] + channels[2] < 384;
  }

  function dress() {
    const theme = isDark() ? "dark" : "light";
    for (const part of document.querySelectorAll(".asr-streaming"))
      if (part.dataset.theme !== theme) part.dataset.theme = theme;
  }

  function verdictOf({ run, running, validity, server, look, shape }) {
    if (!run || !validity) return { name: "none", html: "<strong>No test yet</strong> The verdict on it comes here." };
    const ms = (seconds) => (seconds * 1000).toFixed(1);
    const lag = ms(validity.loop_lag.p99);
    const cpu = (validity.cpu.mean * 100).toFixed(0);
    const reasons = validity.reasons.map((reason) => `<li>${escaped(reason)}</li>`).join("");
    // Their records' times are by their own clocks: what those are off by stands where times are drawn.
    const each = (validity.clients.length > 1 ? validity.clients : [])
      .map(
        ({ worker, cpu_mean, loop_lag_p99, gc_pause_max, clock_offset_s, clock_error_s }) =>
          `<span>${escaped(worker)}: CPU ${(cpu_mean * 100).toFixed(0)} %, late by ${ms(loop_lag_p99)} ms, ` +
          `GC ${ms(gc_pause_max)} ms, clock ${clock_error_s === null ? "unknown" : `${ms(-clock_offset_s)} ± ${ms(clock_error_s)} ms`}</span>`,
      )
      .join(" ");
    return {
      name: look,
      html:
        `<strong>Client: ${escaped(validity.client)}</strong> ` +
        `<span>reads late by ${ms(validity.stamp_lag.p99)} ms at p99</span> <span>event loop late by ${lag} ms at p99</span> <span>CPU ${cpu} % of a core</span> ` +
        `<span>${running ? "last 10 s" : "whole test"}</span>${shape === "none" ? "" : ` <span>shape: ${escaped(shape)}</span>`}${each && `<div>Workers ${each}</div>`}` +
        `<div><strong>Server: ${escaped(server)}</strong></div>${reasons && `<ul>${reasons}</ul>`}`,
    };
  }

  function startReport(section) {
    const { points, stages } = JSON.parse(section.querySelector("script[type='application/json']").textContent);
    const board = new Board();
    board.stages = stages;
    board.add(points);
    section.append(board.root);
    const alert = section.querySelector(".asr-verdict");
    alert.querySelector("path").setAttribute("d", ICONS[alert.dataset.verdict] || ICONS.none);
    dress();
    board.draw();
    // Locust draws its part, and with it the page's background, a little later.
    new MutationObserver(dress).observe(document.getElementById("root") || document.body, {
      childList: true,
      subtree: true,
    });
  }

  function startTab(base) {
    const board = new Board();
    const verdict = document.createElement("div");
    verdict.className = "asr-streaming";
    verdict.innerHTML = '<div class="asr-verdict" role="status"><svg aria-hidden="true" viewBox="0 0 24 24"></svg><div></div></div>';
    const alert = verdict.firstChild;
    let run = "";
    let asking = false;
    let table = [];

    // React owns the tab's table; the verdict goes before it, the charts behind it. It may redraw at any time.
    function panel() {
      const tab = document.querySelector('[role="tab"][aria-selected="true"]');
      if (!tab || tab.textContent.trim() !== TAB) return null;
      const tabs = tab.closest(".MuiTabs-root");
      const around = tabs && tabs.parentNode.parentNode;
      return around && around.querySelector(":scope > .MuiTableContainer-root, :scope > .MuiPaper-root");
    }

    function place() {
      const here = panel();
      if (!here) {
        verdict.remove();
        board.root.remove();
        return;
      }
      if (here.previousSibling === verdict && here.nextSibling === board.root) return;
      here.before(verdict);
      here.after(board.root);
      dress();
      board.draw();
      ask();
    }

    // Locust asks for a table only while a test runs: the last figures of a test, and a reset after it, come from here.
    function refreshTable() {
      const here = panel();
      if (!here) return;
      for (const row of here.querySelectorAll("tbody tr")) {
        const values = table.find(({ metric }) => metric === row.cells[0].textContent);
        if (!values) continue;
        Object.values(values).forEach((value, number) => {
          const text = row.cells[number] && row.cells[number].firstChild;
          if (text && text.nodeType === Node.TEXT_NODE && text.data !== String(value)) text.data = String(value);
        });
      }
    }

    function show(answer) {
      board.stages = answer.stages;
      table = answer.table;
      const { name, html } = verdictOf(answer);
      if (alert.dataset.verdict !== name) {
        alert.dataset.verdict = name;
        alert.querySelector("svg").innerHTML = `<path d="${ICONS[name] || ICONS.none}"/>`;
      }
      if (alert.lastChild.dataset.html !== html) {
        alert.lastChild.innerHTML = html;
        alert.lastChild.dataset.html = html;
      }
      refreshTable();
      board.draw();
    }

    async function ask() {
      if (asking || document.hidden || !board.root.isConnected) return;
      asking = true;
      try {
        for (let more = true; more; ) {
          const after = board.points.length ? board.points[board.points.length - 1].t : 0;
          const query = new URLSearchParams({ run, after: String(after) });
          const response = await fetch(`${base}points?${query}`, { cache: "no-store" });
          if (!response.ok) return;
          const answer = await response.json();
          if (answer.run !== run) {
            board.clear();
            run = answer.run;
          }
          board.add(answer.points);
          ({ more } = answer);
          show(answer);
        }
      } catch {
        // Locust has ended or is out of reach: what is drawn stays, and the next second tries again.
      } finally {
        asking = false;
      }
    }

    let planned = false;
    const onChange = () => {
      if (planned) return;
      planned = true;
      // A frame later: React has then put up what it is at.
      requestAnimationFrame(() => {
        planned = false;
        place();
        dress();
      });
    };
    new MutationObserver(onChange).observe(document.getElementById("root") || document.body, {
      attributes: true,
      attributeFilter: ["aria-selected"],
      childList: true,
      subtree: true,
    });
    document.addEventListener("visibilitychange", ask);
    setInterval(ask, POLL_MS);
    show({ run: "", stages: [], table: [], validity: null });
    place();
  }

  const script = document.currentScript;
  const section = document.querySelector("section.asr-report");
  if (section) startReport(section);
  else if (script && script.src) startTab(new URL(".", script.src).href);
})();
