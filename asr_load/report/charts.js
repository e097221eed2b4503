// Draw charts for the Streaming tab, the reports and the comparison: turn plots into options of ECharts.
//
// report/plots.py defines a plot: title, x, y, series, levels, places. Here a plot may also be over time: x is
// then seconds since the start, a series may be stacked bars, and bands (report/bands.py) are shaded.
(() => {
  "use strict";

  const HUES = ["#2f81f7", "#e07b00", "#1f9d55", "#a371f7", "#d6336c", "#0aa2c0", "#8d6e63", "#7a7f87"];
  const FAILED = ["#e5484d", "#e07b00", "#a371f7", "#d6336c", "#8d6e63", "#7a7f87"];
  // p50, p95 and p99 for light and dark pages. tests/test_webui.py checks that people with any kind of colour blindness
  // can tell them apart.
  const PERCENTILES = [
    { name: "p50", hue: ["#0080c8", "#3a96dd"], dash: "solid" },
    { name: "p95", hue: ["#c75000", "#e8872a"], dash: "solid" },
    { name: "p99", hue: ["#4b1d5a", "#f0e6a0"], dash: "dashed" },
  ];
  const SHADES = { errors: "rgba(229, 72, 77, 0.25)", late: "rgba(224, 160, 0, 0.28)", lost: "rgba(122, 127, 135, 0.28)" };
  const SHADED = { errors: "requests failed", late: "the load generator was late", lost: "a worker was lost" };
  const RATE_S = 5; // rates are means over this many seconds, because streams end in clusters
  const MOST = 600; // maximum number of points of a line, about one per pixel

  const escaped = (text) => String(text).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);

  // Format seconds as mm:ss, or as h:mm:ss from one hour.
  function clock(seconds) {
    const whole = Math.round(seconds);
    const two = (value) => String(value).padStart(2, "0");
    const rest = `${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
    return whole < 3600 ? rest : `${Math.floor(whole / 3600)}:${rest}`;
  }

  // Format a value with three or four significant digits.
  function shown(value) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    const size = Math.abs(value);
    const digits = Number.isInteger(value) || size >= 1000 ? 0 : size >= 100 ? 1 : size >= 1 ? 2 : 4;
    return value.toLocaleString("en", { maximumFractionDigits: digits });
  }

  // Judge by the page's background, because Locust switches its theme without an event.
  function isDark() {
    const channels = (getComputedStyle(document.body).backgroundColor.match(/[\d.]+/g) || []).map(Number);
    if (channels.length < 3 || channels[3] === 0) return matchMedia("(prefers-color-scheme: dark)").matches;
    return channels[0] + channels[1] + channels[2] < 384;
  }

  const colours = (dark) =>
    dark ? { text: "#b8c0cc", split: "#3a3f47", back: "#22262c" } : { text: "#4a5058", split: "#e3e6ea", back: "#ffffff" };

  // Merge the seconds of a long test, keeping the maximum of every value so that no peak is hidden.
  function thinned(points) {
    const stretch = Math.ceil(points.length / MOST);
    if (stretch < 2) return points;
    const highest = (values) => {
      const known = values.filter((value) => value !== null && value !== undefined);
      return known.length ? Math.max(...known) : null;
    };
    const merged = (parts) => {
      const made = {};
      for (const part of parts)
        for (const [key, value] of Object.entries(part))
          if (!(key in made))
            made[key] =
              value !== null && typeof value === "object"
                ? merged(parts.map((each) => each[key]))
                : highest(parts.map((each) => each[key]));
      return made;
    };
    const all = [];
    for (let start = 0; start < points.length; start += stretch) all.push(merged(points.slice(start, start + stretch)));
    return all;
  }

  // The points with rates that are means over the last RATE_S seconds.
  function steadied(points) {
    const width = points.length > 1 ? points[1].t - points[0].t : 1;
    const seconds = Math.max(1, Math.round(RATE_S / width));
    if (seconds < 2) return points;
    const mean = (at, value) => {
      const values = points.slice(Math.max(at - seconds + 1, 0), at + 1).map(value);
      // Before the start there were no requests.
      return values.includes(null) ? null : values.reduce((sum, each) => sum + each, 0) / seconds;
    };
    const outcomes = outcomesOf(points);
    return points.map((point, at) => ({
      ...point,
      successes_per_s: mean(at, (each) => each.successes_per_s),
      tokens_per_s: mean(at, (each) => each.tokens_per_s),
      rtfx: mean(at, (each) => each.rtfx),
      failures_per_s: Object.fromEntries(outcomes.map((name) => [name, mean(at, (each) => each.failures_per_s[name] || 0)])),
    }));
  }

  const outcomesOf = (points) => [...new Set(points.flatMap((point) => Object.keys(point.failures_per_s)))];

  // The stretches in which requests failed.
  function failing(points, began) {
    const found = [];
    let since = began;
    for (const { t, failures_per_s: failures } of points) {
      if (Object.values(failures).some((count) => count > 0)) {
        const last = found[found.length - 1];
        if (last && last.end === since - began) last.end = t - began;
        else found.push({ kind: "errors", begin: since - began, end: t - began });
      }
      since = t;
    }
    return found;
  }

  // Charts over time: metric, title, unit. Realtime sessions have TTFS and RTF live instead of E2E and RTF.
  const LATENCIES = [
    ["ttft", "TTFT", "ms"],
    ["e2el", "E2E", "ms"],
    ["ttfs", "TTFS: end of speech to final text", "ms"],
    ["itl", "ITL", "ms"],
    ["rtf", "RTF", ""],
    ["rtf_live", "RTF live", ""],
  ];
  const LIVE = ["ttfs", "rtf_live"];
  const UPLOADED = ["e2el", "rtf"];

  // The plots of a test over time. `limits` has the SLOs' limits by metric: [{name, at}]. `bands` has stretches to shade,
  // in addition to those with failures: [{kind, begin, end}]. `sessions`: whether requests are realtime sessions.
  // `steady`: the points' rates are means over RATE_S seconds already.
  function course(points, began, { places = [], limits = {}, bands = [], sessions = false, steady = false } = {}) {
    const thin = thinned(steady ? points : steadied(points));
    const until = points.length ? points[points.length - 1].t - began : 0;
    const shaded = [...failing(points, began), ...bands.map((band) => ({ ...band, end: band.end ?? until }))];
    const noun = sessions || (points.length && LIVE.some((metric) => metric in points[0])) ? "Sessions" : "Requests";
    const at = (value) => thin.map((point) => [point.t - began, value(point)]);
    const outcomes = outcomesOf(points);
    const percentiles = (metric) =>
      PERCENTILES.map(({ name, hue, dash }) => ({ kind: "line", name, hue, dash, data: at((point) => point[metric][name]) }));
    const bars = (name, value, hue) => ({ kind: "bars", name, hue, data: at(value) });
    const drawn = LATENCIES.filter(([metric]) => (points.length ? metric in points[0] : !(sessions ? UPLOADED : LIVE).includes(metric)));
    const all = [
      ...drawn.map(([metric, title, unit]) => [title, unit, percentiles(metric), limits[metric]]),
      [
        `${noun} per second, mean of ${RATE_S} s`,
        "",
        [
          bars("ok", (point) => point.successes_per_s, HUES[2]),
          ...outcomes.map((name, number) =>
            bars(name, (point) => point.failures_per_s[name] || 0, FAILED[number % FAILED.length]),
          ),
        ],
      ],
      [
        `Users and ${noun.toLowerCase()} in flight`,
        "",
        [
          { kind: "line", name: "users", step: true, data: at((point) => point.users) },
          { kind: "line", name: "in flight", data: at((point) => point.in_flight) },
        ],
      ],
      [
        `Output tokens per second, mean of ${RATE_S} s`,
        "",
        [{ kind: "line", name: "tokens/s", data: at((point) => point.tokens_per_s) }],
      ],
      [`RTFx (audio s per s), mean of ${RATE_S} s`, "", [{ kind: "line", name: "RTFx", data: at((point) => point.rtfx) }]],
    ];
    const shared = { x: "", places, bands: shaded, until, time: true };
    return all.map(([title, y, series, levels = []]) => ({ title, y, series, levels, ...shared }));
  }

  // Text for screen readers: the title, and each series' last value.
  function inWords(plot) {
    const said = [];
    for (const { kind, name, data } of plot.series) {
      const last = [...data].reverse().find((row) => row[1] !== null);
      if (!last || kind === "points") continue;
      said.push(`${name} ${shown(last[1])}`);
    }
    const unit = plot.y ? `, ${plot.y}` : "";
    return `${plot.title}${unit}${said.length ? `; latest: ${said.join(", ")}` : plot.time ? ": no data yet" : ""}`;
  }

  // Whether a row has a value and its neighbours have none.
  function isAlone(rows, at) {
    const has = (place) => (rows[place]?.[1] ?? null) !== null;
    return has(at) && !has(at - 1) && !has(at + 1);
  }

  // The series of ECharts for one series of a plot.
  function seriesOf(one, number, plot, dark) {
    const hue = Array.isArray(one.hue) ? one.hue[dark ? 1 : 0] : one.hue || HUES[number % HUES.length];
    const base = { name: one.name, color: hue, animation: false, emphasis: { disabled: true } };
    switch (one.kind) {
      case "bars":
        return [{ ...base, type: "bar", stack: "bars", barMaxWidth: 14, barMinWidth: 1, data: one.data }];
      case "points":
        return [{ ...base, type: "scatter", symbolSize: 5, itemStyle: { opacity: 0.6 }, data: one.data }];
      default: {
        const few = one.data.length < 60;
        return [
          {
            ...base,
            type: "line",
            step: one.step ? "end" : undefined,
            symbol: "circle",
            // A value between two gaps has no line, so it needs a symbol.
            symbolSize: few ? 5 : (_, { dataIndex: at }) => (isAlone(one.data, at) ? 5 : 0),
            showSymbol: few || one.data.some((_, at) => isAlone(one.data, at)),
            lineStyle: { width: 2, color: hue, type: one.dash },
            data: one.data,
          },
        ];
      }
    }
  }

  function markLine(plot, ink) {
    const label = (position) => ({ formatter: ({ name }) => name, color: ink.text, fontSize: 11, position });
    const across = plot.levels.map(({ name, at }) => ({
      name,
      yAxis: at,
      lineStyle: { color: "#d6336c", type: "dashed" },
      label: label("insideEndTop"),
    }));
    const last = Math.max(0, ...plot.series.map(({ data }) => (data.length ? data[data.length - 1][0] : 0)));
    const down = plot.places.map(({ name, at }, number) => ({
      name,
      xAxis: at,
      lineStyle: { color: ink.text, type: "dotted" },
      label: {
        ...label("insideEndTop"),
        rotate: 0,
        align: at > 0.8 * last ? "right" : "left",
        offset: [at > 0.8 * last ? -4 : 4, (number % 3) * 13],
      },
    }));
    const data = [...across, ...down];
    return data.length ? { silent: true, symbol: "none", animation: false, data } : undefined;
  }

  function markArea(plot) {
    const data = (plot.bands || []).map(({ kind, begin, end }) => [
      { xAxis: begin, itemStyle: { color: SHADES[kind] } },
      { xAxis: end },
    ]);
    return data.length ? { silent: true, animation: false, data } : undefined;
  }

  // The highest limit above all values, to which the axis extends, unless it is so far above that it would flatten them.
  function limitOf(plot) {
    const top = Math.max(0, ...plot.series.flatMap(({ data }) => data.map((row) => row[1] || 0)));
    const near = plot.levels.map(({ at }) => at).filter((at) => at > top && at < 3 * top);
    return near.length ? Math.max(...near) : undefined;
  }

  // The end of a time axis: a round number of seconds, whose label keeps its distance from the others.
  function roundUp(seconds) {
    for (let unit = 1; ; unit *= 10)
      for (const step of [unit, 2 * unit, 5 * unit])
        if (seconds <= 10 * step) return Math.max(Math.ceil(seconds / step), 1) * step;
  }

  function optionOf(plot, dark) {
    const ink = colours(dark);
    const series = plot.series.flatMap((one, number) => seriesOf(one, number, plot, dark));
    if (series.length) Object.assign(series[0], { markLine: markLine(plot, ink), markArea: markArea(plot) });
    const names = [...new Set(series.map(({ name }) => name))];
    const value = (number) => (plot.time ? clock(number) : shown(number));
    const limit = limitOf(plot);
    return {
      animation: false,
      backgroundColor: "transparent",
      textStyle: { color: ink.text, fontFamily: "inherit" },
      // Charts over time have equal margins, so that their time axes are aligned.
      grid: plot.time
        ? { left: 56, right: 24, top: 64, bottom: 32 }
        : { left: 8, right: 18, top: 64, bottom: plot.x ? 26 : 8, containLabel: true },
      title: { text: plot.title + (plot.y ? ` (${plot.y})` : ""), left: 4, top: 2, textStyle: { color: ink.text, fontSize: 14, fontWeight: 600 } },
      legend: { show: names.length > 1, data: names, left: 0, top: 28, type: "scroll", textStyle: { color: ink.text }, itemWidth: 16, itemHeight: 10, pageTextStyle: { color: ink.text } },
      toolbox: {
        right: 6,
        top: 0,
        itemSize: 13,
        iconStyle: { borderColor: ink.text },
        feature: {
          dataZoom: { yAxisIndex: "none", title: { zoom: "Zoom", back: "Zoom back" } },
          saveAsImage: { name: plot.title.replace(/[^\w]+/g, "-"), backgroundColor: ink.back, title: "Save" },
        },
      },
      tooltip: {
        trigger: plot.series.some(({ kind }) => kind === "points") ? "item" : "axis",
        confine: true,
        backgroundColor: ink.back,
        borderColor: ink.split,
        textStyle: { color: ink.text, fontSize: 12 },
        formatter: (items) => {
          const list = [].concat(items);
          if (!list.length || !list[0].value) return "";
          const line = ({ marker, seriesName, value: row }) => `${marker}${escaped(seriesName)}: <b>${shown(row[1])}</b>`;
          return `${escaped(value(list[0].value[0]))}${plot.x ? ` ${escaped(plot.x)}` : ""}<br>${list.map(line).join("<br>")}`;
        },
      },
      xAxis: {
        type: "value",
        name: plot.x,
        nameLocation: "middle",
        nameGap: 26,
        min: plot.time ? 0 : undefined,
        max: plot.time ? roundUp(plot.until) : undefined,
        splitNumber: 4,
        minInterval: plot.time ? 1 : undefined,
        containShape: !plot.time,
        axisLine: { lineStyle: { color: ink.split } },
        axisLabel: { color: ink.text, formatter: (number) => value(number), hideOverlap: true, margin: 12 },
        splitLine: { show: false },
      },
      yAxis: {
        type: plot.log_y ? "log" : "value",
        min: plot.log_y ? undefined : 0,
        max: limit && limit * 1.05,
        axisLabel: { color: ink.text, formatter: (number) => shown(number), hideOverlap: true, showMaxLabel: limit ? false : undefined },
        splitLine: { lineStyle: { color: ink.split } },
      },
      graphic:
        plot.time && !plot.series.some(({ data }) => data.length)
          ? { type: "text", left: "center", top: "middle", style: { text: "No data yet", fill: ink.text, font: "13px sans-serif" } }
          : [],
      series,
    };
  }

  // Plots in a page's elements. Those over time are connected: pointing at one points at all.
  class Charts {
    constructor(group) {
      this.group = group;
      this.drawn = new Map();
      this.sizes = new ResizeObserver((entries) => {
        for (const { target } of entries) this.drawn.get(target)?.chart.resize();
      });
    }

    draw(element, plot) {
      const dark = isDark();
      let known = this.drawn.get(element);
      if (!known) {
        const chart = echarts.init(element, null, { renderer: "svg" });
        if (plot.time) chart.group = this.group;
        known = { chart };
        this.drawn.set(element, known);
        this.sizes.observe(element);
        if (plot.time) echarts.connect(this.group);
      }
      const form = JSON.stringify([plot.series.map(({ name, data }) => [name, !data.length]), dark]);
      // Keep the user's zoom and hidden lines while the lines are the same.
      known.chart.setOption(optionOf(plot, dark), { notMerge: form !== known.form });
      Object.assign(known, { form, plot, dark });
      element.setAttribute("role", "img");
      element.setAttribute("aria-label", inWords(plot));
    }

    // For printing, scale the charts as a whole, because paper has no room for their text at full size.
    hold(held) {
      for (const element of this.drawn.keys()) this.sizes[held ? "unobserve" : "observe"](element);
    }

    dress() {
      const dark = isDark();
      for (const [element, known] of this.drawn) if (known.dark !== dark) this.draw(element, known.plot);
    }
  }

  window.asrCharts = { Charts, course, escaped, isDark, PERCENTILES, SHADES, SHADED };
})();
