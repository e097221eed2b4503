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
  for (const element of document.querySelectorAll("[data-plot]"))
    charts.draw(element, data.plots[Number(element.dataset.plot)]);
  prefers.addEventListener("change", () => dress(wanted()));
  if (!own) new MutationObserver(() => dress(wanted())).observe(document.body, { childList: true, subtree: true, attributes: true, attributeFilter: ["style", "class"] });
  addEventListener("beforeprint", () => {
    dress(false); // print in light colours
    charts.hold(true);
  });
  addEventListener("afterprint", () => {
    dress(wanted());
    charts.hold(false);
  });
})();
