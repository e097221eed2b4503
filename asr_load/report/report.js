// Draw a report's charts from the data in its page.
(() => {
  "use strict";
  const { Charts, course, isDark } = window.asrCharts;
  const data = JSON.parse(document.getElementById("plots").textContent);
  const charts = new Charts("report");
  const root = document.querySelector(".asr");
  const prefers = matchMedia("(prefers-color-scheme: dark)");
  const overTime = data.course ? course(data.course.points, data.course.began, data.course) : [];

  function dress(dark) {
    root.dataset.theme = dark ? "dark" : "light";
    charts.dress();
  }

  // In Locust's report, Locust sets the theme, shortly after the page has loaded.
  const own = root === document.body;
  const wanted = () => (own ? prefers.matches : isDark());
  dress(wanted());
  for (const element of document.querySelectorAll("[data-course]"))
    charts.draw(element, overTime[Number(element.dataset.course)]);
  for (const element of document.querySelectorAll("[data-course-title]")) {
    const plot = overTime.find(({ title }) => title.startsWith(element.dataset.courseTitle));
    if (plot) charts.draw(element, plot);
  }
  for (const element of document.querySelectorAll("[data-plot]"))
    charts.draw(element, data.plots[Number(element.dataset.plot)]);
  prefers.addEventListener("change", () => dress(wanted()));
  if (!own) new MutationObserver(() => dress(wanted())).observe(document.body, { childList: true, subtree: true, attributes: true, attributeFilter: ["style", "class"] });

  // Paper has no room for charts with text at full size: scale them as pictures, this many pixels wide.
  const PRINTED = 400;
  const PRINTED_WIDE = 640;

  function shrink(element) {
    const chart = echarts.getInstanceByDom(element);
    if (!chart) return;
    const width = element.closest(".opening") ? PRINTED_WIDE : PRINTED;
    const height = width * Number(getComputedStyle(element).getPropertyValue("--printed-ratio"));
    chart.resize({ width, height });
    const picture = element.querySelector("svg");
    picture?.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture?.setAttribute("preserveAspectRatio", "none");
  }

  // Print in light colours, with what fits on two pages: unfold those details, and fold the others.
  const folds = [...document.querySelectorAll("details.fold")];
  let unfolded = [];
  addEventListener("beforeprint", () => {
    unfolded = folds.filter(({ open }) => open);
    for (const fold of folds) fold.open = "print" in fold.dataset;
    charts.hold(true);
    dress(false);
    for (const element of document.querySelectorAll(".plot")) shrink(element);
  });
  addEventListener("afterprint", () => {
    for (const fold of folds) fold.open = unfolded.includes(fold);
    dress(wanted());
    for (const element of document.querySelectorAll(".plot")) {
      element.querySelector("svg")?.removeAttribute("viewBox");
      echarts.getInstanceByDom(element)?.resize({ width: "auto", height: "auto" });
    }
    charts.hold(false);
  });
})();
