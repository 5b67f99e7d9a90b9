// Writes instants in the zone and the language of the browser: <time class="local-time" datetime="2026-01-31T12:00:00Z">.
(() => {
  const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  const write = (element) => {
    const at = element.getAttribute("datetime");
    const text = at && !Number.isNaN(Date.parse(at)) ? format.format(new Date(at)) : "–";
    if (element.textContent !== text) {
      element.textContent = text;
      element.title = at || "";
    }
  };
  const writeAll = () => document.querySelectorAll("time.local-time").forEach(write);
  new MutationObserver(writeAll).observe(document.documentElement, {
    subtree: true, childList: true, attributes: true, attributeFilter: ["datetime"],
  });
  writeAll();
})();
