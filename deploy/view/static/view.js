// The page on runs: its sections, its head, and live updates.
"use strict";

(async () => {
  const { el, text, number } = frame;
  const GOOD = ["done", "running"];
  const REFRESH = 2000; // ms at least between two refreshes of what is shown
  const runs = await source.runs();
  view.runs = runs;
  let live = null;
  let due = null;

  function head() {
    const chips = runs.map((run, index) =>
      el("span", { class: `chip ${GOOD.includes(run.status) ? "good" : "bad"}`, title: run.where },
        runs.length > 1 ? el("span", { class: `line l${index}`, "aria-hidden": "true" }) : null,
        text(run.label), ` · ${run.status} · step ${number(run.step)}`));
    const now = source.whole ? "report" : live === false ? "the server does not answer" : live ? "live" : "";
    frame.fill(document.getElementById("status"), chips, " ", el("span", { class: "soft small", id: "live" }, now));
  }

  frame.key("/", "search", () => {
    const field = document.querySelector("input[type=search]");
    if (!field) return false;
    field.focus();
    return true;
  });
  frame.start({
    title: "engram",
    sections: [view.curves, view.episodes, view.memory, view.waits, view.state],
  });
  head();
  source.follow((now) => {
    live = true;
    now.forEach((each, index) => Object.assign(runs[index], each));
    head();
    if (due === null) {
      due = setTimeout(() => {
        due = null;
        frame.refresh();
      }, REFRESH);
    }
  }, (answers) => {
    live = answers;
    head();
  });
})();
