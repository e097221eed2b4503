// The Streaming tab: headline, charts and table of the running test, or of the last one.
//
// Locust's page is a compiled React program, and a tab added to it can only hold a table. This script hides that table
// and puts its own content next to it, which it updates every two seconds while the tab is visible.
(() => {
  "use strict";

  const TAB = "Streaming";
  const POLL_MS = 2000;
  const { Charts, course, escaped } = window.asrCharts;
  const base = new URL(".", document.currentScript.src).href;

  const root = document.createElement("div");
  root.className = "asr asr-tab";
  root.innerHTML =
    '<div class="head" role="status"></div><div class="charts"></div><h2>Latencies</h2><div class="scroll table"></div>';
  const [head, grid, , table] = root.children;
  const charts = new Charts("tab");
  let points = [];
  let run = "";
  let asking = false;
  let led = false;

  const text = (value) => escaped(value ?? "");

  function wordOf({ name, text: statement, look, reasons }) {
    const line = `${text(name)}: <strong class="${look}">${text(statement)}</strong>`;
    if (!reasons.length) return `<span>${line}</span>`;
    const open = head.querySelector(`details[data-name="${name}"]`)?.open ? " open" : "";
    const why = reasons.map((reason) => `<p class="note">${text(reason)}</p>`).join("");
    return `<details data-name="${text(name)}"${open}><summary>${line} <span title="why">?</span></summary>${why}</details>`;
  }

  const tileOf = ({ name, value, unit, more, look }) =>
    `<div class="tile"><div class="name">${text(name)}</div><div class="value">${text(value)} ` +
    `<span class="unit">${text(unit)}</span></div><div class="more ${look}">${text(more)}</div></div>`;

  function headOf({ run: series, words, tiles, now, running }) {
    if (!series) return "<p>No test yet. Its figures will appear here.</p>";
    const said = now.length ? `<p class="note now">${now.map(text).join(" · ")}</p>` : "";
    const span = running ? "figures of the last 10 s unless a card says otherwise; limits apply to the whole test so far" : "exact figures of the whole test";
    return (
      `<div class="words">${words.map(wordOf).join("")}</div>${said}` +
      `<div class="tiles">${tiles.map(tileOf).join("")}</div><p class="note span">${span}</p>`
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
    while (grid.children.length < plots.length) {
      const figure = document.createElement("figure");
      figure.innerHTML = '<div class="plot" tabindex="0"></div>';
      grid.append(figure);
    }
    plots.forEach((plot, number) => charts.draw(grid.children[number].firstChild, plot));
  }

  function show(answer) {
    put(head, headOf(answer));
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
