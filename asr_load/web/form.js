// The form that starts or edits a test: the usual fields first, the others folded under "More"; lists of data and models;
// a picture of the load; a message at the field that is wrong.
//
// Locust's page is a compiled React program, whose form has all fields in one long column. This script moves none of
// them, because React owns them: it marks them with attributes, by which page.css arranges them, and adds elements. Without
// it, Locust's form works as it is.
(() => {
  "use strict";

  const base = new URL(".", document.currentScript.src).href;
  const { escaped, isDark } = window.asrCharts;
  const camel = (name) => name.replace(/_(\w)/g, (_, letter) => letter.toUpperCase());
  const DRAWN = ["user_count", "spawn_rate", "run_time", "shape", "stages", "stage_time"];
  const SERVER = ["host", "api_key"];

  let known; // the fields, the prepared folders, and what to say while a test starts
  let key = ""; // the API key that was typed, until its request has been answered

  const inputOf = (form, name) => form.querySelector(`[name="${camel(name)}"]`);
  const controlOf = (form, name) => inputOf(form, name)?.closest(".MuiFormControl-root, .MuiFormControlLabel-root");
  const current = () => document.querySelector('form:has([name="userCount"])');

  function added(parent, selector, html) {
    const found = parent.querySelector(`:scope > ${selector}`);
    if (found) return found;
    parent.insertAdjacentHTML("beforeend", html);
    return parent.lastElementChild;
  }

  // Set the value of a text field as if it were typed, so that React notices.
  function type(input, value) {
    Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(input, value);
    input.dispatchEvent(new Event("input", { bubbles: true }));
  }

  function say(element, text) {
    const node = [...element.childNodes].find((child) => child.nodeType === Node.TEXT_NODE);
    if (node && node.nodeValue !== text) node.nodeValue = text;
  }

  // Mark the fields of a form, once.
  function arrange(form) {
    if (form.dataset.asr) return;
    form.dataset.asr = "form";
    const groups = new Set();
    known.fields.forEach(({ name, label, help, group }, place) => {
      const control = controlOf(form, name);
      if (!control) return;
      control.dataset.asr = group ? "more" : name;
      control.style.order = place + (group ? 101 : 1);
      if (group && !groups.has(group)) control.dataset.group = group;
      groups.add(group);
      for (const element of control.querySelectorAll("label, legend > span")) say(element, label);
      if (help) added(control, ".asr-help", `<p class="asr-help">${escaped(help)}</p>`);
    });
    fold(form);
    pick(form, "data", known.data, "prepared folder");
    added(controlOf(form, "shape") ?? controlOf(form, "run_time") ?? form, ".asr-load", '<div class="asr-load"></div>');
    forgetKey(form);
    draw(form);
    list(form);
    form.addEventListener("input", (event) => onInput(form, event.target));
    form.addEventListener("change", (event) => SERVER.map(camel).includes(event.target.name) && list(form));
  }

  // Locust has two foldable lists of fields: the last becomes "More", and the fields of both are arranged together.
  function fold(form) {
    const lists = [...form.querySelectorAll(".MuiAccordion-root")];
    lists.forEach((each, number) => {
      each.dataset.asr = number === lists.length - 1 ? "more" : "list";
      for (const control of each.querySelectorAll(".MuiFormControl-root:not([data-asr])")) {
        const whole = control.closest(".MuiAutocomplete-root") ?? control;
        whole.dataset.asr = "more";
        whole.style.order = 100;
      }
    });
    const button = lists[lists.length - 1]?.querySelector("button");
    const name = button?.querySelector("p");
    if (!name) return;
    say(name, "More");
    button.setAttribute("aria-label", "More: custom parameters");
  }

  // Offer values for a field, in which any other may be typed.
  function pick(form, name, values, noun) {
    const control = controlOf(form, name);
    if (!control) return;
    const menu = added(control, "select", `<select class="asr-pick"></select>`);
    const first = values.length === 1 ? `choose: 1 ${noun}` : values.length ? `choose: ${values.length} ${noun}s` : `no ${noun} listed`;
    menu.setAttribute("aria-label", first);
    menu.innerHTML = ["", ...values].map((value) => `<option value="${escaped(value)}">${escaped(value || first)}</option>`).join("");
    menu.onchange = (event) => {
      event.stopPropagation();
      if (menu.value) type(inputOf(form, name), menu.value);
      menu.value = "";
    };
  }

  // List the models of the server in the form.
  let asked = 0;
  async function list(form) {
    const number = ++asked;
    const fields = new URLSearchParams({ host: inputOf(form, "host")?.value ?? "", api_key: inputOf(form, "api_key")?.value ?? "" });
    try {
      const response = await fetch(`${base}models`, { method: "POST", body: fields });
      if (!response.ok || number !== asked || !form.isConnected) return;
      const { models, field, message } = await response.json();
      pick(form, "model", models, "model");
      if (message) mark(form, field, message);
      else unmark(controlOf(form, "host"));
    } catch {
      // Locust cannot be reached: the field takes any name.
    }
  }

  // Draw the number of users over time, from the plan that the server would follow.
  let drawing = 0;
  async function draw(form) {
    const place = form.querySelector(".asr-load");
    const number = ++drawing;
    const values = DRAWN.map((name) => [name, inputOf(form, name)?.value]).filter(([, value]) => value !== undefined);
    try {
      const response = await fetch(`${base}load`, { method: "POST", body: new URLSearchParams(values) });
      if (!response.ok || number !== drawing || !place) return;
      place.innerHTML = picture(await response.json());
    } catch {
      // Locust cannot be reached: there is no picture.
    }
  }

  function picture({ corners, words }) {
    if (corners.length < 2) return "";
    const last = corners[corners.length - 1][0] || 1;
    const peak = Math.max(...corners.map(([, users]) => users), 1);
    const at = ([seconds, users]) => `${((240 * seconds) / last).toFixed(1)},${(52 - (44 * users) / peak).toFixed(1)}`;
    const line = corners.map(at).join(" ");
    return (
      `<svg viewBox="0 0 240 54" role="img" aria-label="Load: ${escaped(words)}" preserveAspectRatio="none">` +
      `<polygon points="0,52 ${line} 240,52"/><polyline points="${line}"/></svg><p class="asr-help">${escaped(words)}</p>`
    );
  }

  function onInput(form, input) {
    const field = known.fields.find(({ name }) => camel(name) === input.name);
    if (!field) return;
    unmark(controlOf(form, field.name));
    if (DRAWN.includes(field.name)) draw(form);
  }

  // Show a message at a field.
  function mark(form, name, message) {
    const control = controlOf(form, name);
    if (!control) return false;
    unmark(control);
    control.insertAdjacentHTML("beforeend", `<p class="asr-wrong" role="alert">${escaped(message)}</p>`);
    control.dataset.wrong = "";
    inputOf(form, name).setAttribute("aria-invalid", "true");
    const more = form.querySelector('[data-asr="more"] button[aria-expanded="false"]');
    if (control.dataset.asr === "more" && more) more.click();
    return true;
  }

  function unmark(control) {
    if (!control) return;
    control.querySelector(".asr-wrong")?.remove();
    delete control.dataset.wrong;
    control.querySelector("[aria-invalid]")?.setAttribute("aria-invalid", "false");
  }

  // React would keep the API key in the page, as the field's next default.
  function hideKey(form) {
    const input = inputOf(form, "api_key");
    if (!input?.value) return;
    key = input.value;
    type(input, "");
  }

  function forgetKey(form) {
    const input = inputOf(form, "api_key");
    if (input?.value) type(input, "");
  }

  addEventListener("submit", (event) => event.target.dataset.asr && hideKey(event.target), true);

  // Locust's page sends its form with fetch, and has no event for it.
  const send = window.fetch;
  window.fetch = async (target, ...more) => {
    const { pathname } = new URL(target.url ?? target, location.href);
    if (!pathname.endsWith("/swarm")) return send(target, ...more);
    const request = new Request(target, ...more);
    const typed = key;
    key = "";
    const form = current();
    const isEdit = Boolean(form?.closest('[role="dialog"], [role="presentation"]')) && form.querySelector("button[type=submit]")?.textContent === "Update";
    const line = form && !isEdit && known ? added(form, ".asr-starting", '<p class="asr-starting" role="status"></p>') : null;
    if (line) line.textContent = known.starting;
    if (!isEdit) dispatchEvent(new CustomEvent("asr-load-start", { detail: known?.starting ?? "Starting …" }));
    try {
      const response = await send(typed ? await withKey(request, typed) : request);
      const answer = await response.clone().json().catch(() => ({}));
      const label = form && known && after(form, answer, typed);
      if (!label) return response;
      // The message is at the field, so Locust's line at the end of the form only names that.
      return Response.json({ ...answer, message: `Correct the field "${label}".` });
    } finally {
      line?.remove();
      dispatchEvent(new Event("asr-load-answer"));
    }
  };

  async function withKey(request, typed) {
    const fields = new URLSearchParams(await request.clone().text());
    fields.set("api_key", typed);
    return new Request(request, { body: fields });
  }

  // Show the result of starting a test in its form. Returns the label of a wrong field.
  function after(form, { success, field, message }, typed) {
    for (const control of form.querySelectorAll("[data-wrong]")) unmark(control);
    if (success !== false) return "";
    const input = inputOf(form, "api_key");
    if (typed && input) type(input, typed); // the form is still open: do not make the user type it again
    if (!field || !mark(form, field, message)) return "";
    inputOf(form, field).focus();
    return known.fields.find(({ name }) => name === field)?.label ?? field;
  }

  let planned = false;
  const onChange = () => {
    if (planned || !known) return;
    planned = true;
    // Wait for the next frame, when React has finished its update.
    requestAnimationFrame(() => {
      planned = false;
      const form = current();
      if (!form) return;
      arrange(form);
      form.dataset.theme = isDark() ? "dark" : "light";
    });
  };

  fetch(`${base}form`, { cache: "no-store" })
    .then((response) => (response.ok ? response.json() : undefined))
    .then((answer) => {
      known = answer;
      new MutationObserver(onChange).observe(document.body, { childList: true, subtree: true, characterData: true });
      onChange();
    })
    .catch(() => {}); // Locust's form works as it is
})();
