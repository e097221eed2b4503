// The Streaming tab: sentence, cards, charts and table of the running test, or of the last one, and the session's tests.
//
// Locust's page is a compiled React program, and a tab added to it can only hold a table. This script hides that table
// and puts its own content next to it, which it updates every two seconds while the tab is visible.
(() => {
  "use strict";

  const TAB = "Streaming";
  const POLL_MS = 2000;
  const { Charts, course, escaped, SHADES, SHADED } = window.asrCharts;
  const base = new URL(".", document.currentScript.src).href;

  const root = document.createElement("div");
  root.className = "asr asr-tab";
  root.innerHTML =
    '<div class="head" role="status"></div><div class="details"><div class="note shades"></div><div class="charts"></div>' +
    '<h2>Latencies</h2><div class="scroll table"></div></div><div class="runs"></div>';
  const [head, details, runs] = root.children;
  const [shades, grid, , table] = details.children;
  const charts = new Charts("tab");
  let points = [];
  let run = "";
  let asking = false;
  let led = false;
  let replaced = null; // the test whose figures the server may still send while the next one is starting
  const unfolded = new Map(); // whether the user opened or closed the reasons of a statement

  const text = (value) => escaped(value ?? "");

  function wordOf({ name, text: statement, look, reasons }) {
    const line = `${text(name)}: <strong class="${look}">${text(statement)}</strong>`;
    if (!reasons.length) return `<span>${line}</span>`;
    const open = unfolded.get(name) ?? look !== "good";
    const why = reasons.map((reason) => `<p class="note">${text(reason)}</p>`).join("");
    return `<details data-name="${text(name)}"${open ? " open" : ""}><summary>${line}</summary>${why}</details>`;
  }

  const tileOf = ({ name, value, unit, more, look, span }) =>
    `<div class="tile"><div class="top"><span class="name">${text(name)}</span> <span class="of">${text(span)}</span></div>` +
    `<div class="value">${text(value)} <span class="unit">${text(unit)}</span></div>` +
    `<div class="more ${look}">${text(more)}</div></div>`;

  function headOf({ run: series, starting, sentence, look, words, tiles, now, running }) {
    if (starting) return `<p class="sentence">${text(starting)}</p>`;
    if (!series) return '<p class="sentence">No test yet. Its figures will appear here.</p>';
    const said = running ? now : ["exact figures of the whole test"];
    return (
      `<p class="sentence ${look}">${text(sentence)}</p><p class="note now">${said.map(text).join(" · ")}</p>` +
      `<div class="tiles">${tiles.map(tileOf).join("")}</div><div class="words">${words.map(wordOf).join("")}</div>`
    );
  }

  // A key for the colours of the shaded stretches, if there are any.
  function shadesOf(bands) {
    const kinds = Object.keys(SHADED).filter((kind) => bands.some((band) => band.kind === kind));
    const key = (kind) => `<span><i style="background: ${SHADES[kind]}"></i> ${text(SHADED[kind])}</span>`;
    return kinds.length ? `Shaded: ${kinds.map(key).join(" ")}` : "";
  }

  // The session's finished tests, the latest first.
  function runsOf(list) {
    if (!list.length) return "";
    const rows = list.map(
      ({ began, folder, sentence, report }) =>
        `<tr><td>${text(began)}</td><td class="name">${text(sentence)}<br><span class="note">${text(folder)}</span></td>` +
        `<td>${report ? `<a href="${base}${text(report)}" target="_blank">report</a>` : ""}</td></tr>`,
    );
    return (
      "<h2>Tests of this session</h2><div class=\"scroll\"><table><thead><tr><th>began</th><th class=\"name\">result</th>" +
      `<th></th></tr></thead><tbody>${rows.join("")}</tbody></table></div>`
    );
  }

  // A row for each metric, with blocks for the last seconds and the whole test. Narrow screens hide some columns.
  function tableOf({ columns, rows, blocks }) {
    const wide = (name) => (["p50", "p95", "max"].includes(name) ? "" : " wide");
    const heads = blocks.map((name) => `<th class="block" colspan="${columns.length}">${text(name)}</th>`).join("");
    const names = blocks
      .map(() => columns.map((name, at) => `<th class="${at ? "" : "block"}${wide(name)}">${text(name)}</th>`).join(""))
      .join("");
    const body = rows
      .map(({ metric, cells }) => {
        const own = cells
          .map((block) =>
            block
              .map(({ value, faint }, at) => {
                const looks = `${at ? "" : "block"}${wide(columns[at])}${faint ? " faint" : ""}`;
                return `<td class="${looks}">${text(value)}</td>`;
              })
              .join(""),
          )
          .join("");
        return `<tr><th class="name" scope="row">${text(metric)}</th>${own}</tr>`;
      })
      .join("");
    return `<table><thead><tr><th></th>${heads}</tr><tr><th></th>${names}</tr></thead><tbody>${body}</tbody></table>`;
  }

  function put(element, html) {
    if (element.dataset.html === html) return;
    element.dataset.html = html;
    element.innerHTML = html;
  }

  function draw(answer) {
    const plots = course(points, answer.began, answer);
    put(shades, shadesOf(plots[0].bands));
    while (grid.children.length < plots.length) {
      const figure = document.createElement("figure");
      figure.innerHTML = '<div class="plot" tabindex="0"></div>';
      grid.append(figure);
    }
    plots.forEach((plot, number) => charts.draw(grid.children[number].firstChild, plot));
  }

  function show(answer) {
    put(head, headOf(answer));
    put(runs, runsOf(answer.runs));
    details.hidden = !answer.run;
    if (!answer.run) return;
    put(table, tableOf(answer.table));
    if (root.isConnected && root.clientWidth) draw(answer);
  }

  async function ask() {
    if (asking || document.hidden || !root.isConnected) return;
    asking = true;
    try {
      for (let more = true; more; ) {
        const after = points.length ? points[points.length - 1].t : 0;
        const query = new URLSearchParams({ run, after: String(after) });
        const response = await fetch(`${base}points?${query}`, { cache: "no-store" });
        if (!response.ok) return;
        const answer = await response.json();
        if (replaced !== null && answer.run === replaced) return;
        if (answer.run !== run) {
          points = [];
          run = answer.run;
        }
        points.push(...answer.points);
        ({ more } = answer);
        show(answer);
      }
    } catch {
      // Locust has stopped or cannot be reached: keep the charts and try again later.
    } finally {
      asking = false;
    }
  }

  // A test is starting: nothing of the last one is left to see, at once.
  addEventListener("asr-load-start", ({ detail }) => {
    replaced = run;
    points = [];
    run = "";
    unfolded.clear();
    put(head, headOf({ starting: detail }));
    details.hidden = true;
  });
  addEventListener("asr-load-answer", () => {
    replaced = null; // the server now shows the new test or, if that could not start, the last one
    ask();
  });

  head.addEventListener("click", (event) => {
    const fold = event.target.closest("summary")?.parentNode;
    if (fold) unfolded.set(fold.dataset.name, !fold.open);
  });

  const ours = () => [...document.querySelectorAll('[role="tab"]')].find((tab) => tab.textContent.trim() === TAB);

  // React owns the tab's table and may redraw it at any time.
  function place() {
    const tab = ours();
    if (!tab) return;
    for (const [at, each] of [...tab.parentNode.children].entries()) each.style.order = each === tab ? 1 : at && 2;
    if (!led) {
      led = true; // show this tab first after START, unless the URL names another one
      if (!new URLSearchParams(location.search).get("tab")) tab.click();
    }
    const tabs = tab.closest(".MuiTabs-root");
    const here =
      tab.getAttribute("aria-selected") === "true" &&
      tabs.parentNode.parentNode.querySelector(":scope > .MuiTableContainer-root, :scope > .MuiPaper-root");
    if (!here) {
      root.remove();
      return;
    }
    if (here.previousSibling === root) return;
    here.before(root);
    dress();
    ask();
  }

  // Say which seconds and which program Locust's own figures and files belong to.
  const NAMES = new Map([
    ["RPS", "RPS (10 s)"],
    ["Failures", "Failures (test)"],
    ["Download requests CSV", "Locust: download requests CSV"],
    ["Download full request statistics history CSV", "Locust: download full request statistics history CSV"],
    ["Download failures CSV", "Locust: download failures CSV"],
    ["Download exceptions CSV", "Locust: download exceptions CSV"],
    ["Download Report", "Locust: open its report, with a section on streaming"],
  ]);

  function name() {
    for (const element of document.querySelectorAll("header p, header span, main a, .MuiContainer-root a")) {
      const shown = element.childNodes.length === 1 && element.firstChild.nodeType === Node.TEXT_NODE && element.firstChild;
      if (!shown || !NAMES.has(shown.nodeValue)) continue;
      shown.nodeValue = NAMES.get(shown.nodeValue);
      if (element.closest("header")) element.style.cssText = "font-size: 0.8rem; line-height: 1.5rem; white-space: nowrap";
    }
  }

  function dress() {
    root.dataset.theme = window.asrCharts.isDark() ? "dark" : "light";
    charts.dress();
  }

  let planned = false;
  const onChange = () => {
    if (planned) return;
    planned = true;
    // Wait for the next frame, when React has finished its update.
    requestAnimationFrame(() => {
      planned = false;
      if (!ours()) led = false; // the form is open: show the tab again for the next test
      name();
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
  place();
})();
