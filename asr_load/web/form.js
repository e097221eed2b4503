// The form that starts or edits a test: tell the tab that a test is starting.
(() => {
  "use strict";

  const send = window.fetch;

  // Locust's page sends its form with fetch, and has no event for it.
  window.fetch = (request, ...more) => {
    const { pathname } = new URL(request.url ?? request, location.href);
    if (pathname.endsWith("/swarm")) starting();
    return send(request, ...more);
  };

  function starting() {
    if (editing()) return;
    dispatchEvent(new Event("asr-load-start"));
  }

  const editing = () => [...document.querySelectorAll("form button[type=submit]")].some((button) => button.textContent === "Update");
})();
