// Show the command that compares the two selected runs of index.html.
(() => {
  "use strict";
  const boxes = [...document.querySelectorAll("input[type=checkbox]")];
  const bar = document.querySelector(".compare");
  const code = bar.querySelector("code");
  const button = bar.querySelector("button");
  const written = bar.querySelector(".written");
  const prefers = matchMedia("(prefers-color-scheme: dark)");
  let chosen = [];

  function dress() {
    document.body.dataset.theme = prefers.matches ? "dark" : "light";
  }

  function show() {
    bar.hidden = chosen.length < 2;
    if (bar.hidden) return;
    code.textContent = `asr-load compare ${chosen.map((box) => box.dataset.word).join(" ")}`;
    button.textContent = "Copy";
    const pairs = [chosen, [...chosen].reverse()];
    const found = pairs.find(([one, other]) => one.dataset.comparison && one.dataset.baseline === other.dataset.name);
    written.hidden = !found;
    if (found) written.querySelector("a").href = found[0].dataset.comparison;
  }

  function choose(box) {
    chosen = chosen.filter((each) => each !== box);
    if (box.checked) chosen.push(box);
    // A third choice replaces the first.
    if (chosen.length > 2) chosen.shift().checked = false;
    show();
  }

  async function copy() {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      // Some browsers allow no copying from a file: select the text.
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
  }

  dress();
  prefers.addEventListener("change", dress);
  for (const box of boxes) {
    box.addEventListener("change", () => choose(box));
    // A browser may keep the choice when the page is loaded again.
    if (box.checked) choose(box);
  }
  button.addEventListener("click", copy);
})();
