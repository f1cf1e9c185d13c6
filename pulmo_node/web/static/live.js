// Live updates. The server says which studies changed; this page then asks for itself again and takes over the parts
// that are marked `data-live` and differ. Without this script the page is the same, only not by itself up to date.
"use strict";

(() => {
  const page = document.querySelector("[data-live-page]");
  if (!page || !window.EventSource) return;
  const wanted = page.dataset.livePage;
  const status = document.getElementById("live-status");
  const seen = new Map();
  let busy = false;
  let again = false;
  let timer = 0;

  function keep(part) {
    // What a person opened stays open, and where the keyboard is it stays.
    const open = new Map([...part.querySelectorAll("details[id]")].map((one) => [one.id, one.open]));
    const active = part.contains(document.activeElement) ? document.activeElement : null;
    const place = active ? [...part.querySelectorAll("a, button, input, summary, [tabindex]")].indexOf(active) : -1;
    return () => {
      for (const one of part.querySelectorAll("details[id]")) if (open.has(one.id)) one.open = open.get(one.id);
      if (place >= 0) part.querySelectorAll("a, button, input, summary, [tabindex]")[place]?.focus();
    };
  }

  function state(from) {
    return from.querySelector("#study-state")?.textContent.trim() ?? "";
  }

  async function refresh() {
    if (busy) { again = true; return; }
    busy = true;
    try {
      const answer = await fetch(location.href, {
        credentials: "same-origin", redirect: "manual", headers: { "X-Live": "1" },
      });
      if (answer.type === "opaqueredirect" || answer.status === 401) { location.reload(); return; }
      if (!answer.ok) return;
      const next = new DOMParser().parseFromString(await answer.text(), "text/html");
      const before = state(document);
      for (const part of document.querySelectorAll("[data-live]")) {
        const fresh = next.getElementById(part.id);
        if (!fresh || fresh.innerHTML === seen.get(part)) continue;
        seen.set(part, fresh.innerHTML);
        const restore = keep(part);
        part.replaceChildren(...[...fresh.childNodes].map((node) => document.importNode(node, true)));
        restore();
      }
      if (state(document) !== before) status.textContent = `The study is now ${state(document)}.`;
    } catch {
      // the server is away: the event stream comes back by itself, and with it the next refresh
    } finally {
      busy = false;
      if (again) { again = false; later(); }
    }
  }

  function later() {
    clearTimeout(timer);
    timer = setTimeout(refresh, 300);
  }

  for (const part of document.querySelectorAll("[data-live]")) seen.set(part, part.innerHTML);
  const events = new EventSource("/live");
  let greeted = false;
  events.addEventListener("hello", () => { if (greeted) later(); greeted = true; });
  events.addEventListener("changed", (event) => {
    const changed = event.data.split(" ");
    if (wanted === "*" || changed.includes(wanted)) later();
  });
  addEventListener("pagehide", () => events.close());
})();
