// Section State: where each run stands, what went wrong, and its files.
"use strict";

view.state = (() => {
  const { el, text, number, duration, table } = frame;
  const SIGNS = { over: "✓ over", now: "▶ now", "to come": "· to come" };
  const HOW = { iterations: "its iterations are over", reached: "reached", "given up": "given up" };
  const opened = new Set(); // boxes that stay open over refreshes

  function box(name, content) {
    const node = el("details", { open: opened.has(name), ontoggle: () => { if (node.open) opened.add(name); else opened.delete(name); } },
      el("summary", {}, name), content);
    return node;
  }

  function rule(step) {
    const wanted = Object.entries(step.until).map(([name, value]) => `${name} ≥ ${number(value)}${step.latest[name] === null || step.latest[name] === undefined ? "" : ` (now ${number(step.latest[name])})`}`).join(" and ");
    if (!wanted) return `after ${step.iterations} iterations`;
    const times = step.times > 1 ? `, ${step.times} times in a row${step.reached === null ? "" : ` (${step.reached} so far)`}` : "";
    return `${wanted}${times}; at most ${step.iterations} iterations${step.patience ? `; given up after ${step.patience} measurements without a new best` : ""}`;
  }

  function curriculum(steps) {
    if (!steps.length) return el("p", { class: "soft" }, "This run has no curriculum.");
    return table(["", "step", "turns", "goes on"], steps.map((step) => [
      step.ended ? `✓ ${HOW[step.ended.how] || step.ended.how}, after ${step.ended.iterations} iterations` : step.now ? "▶ now" : "·",
      text(step.name), step.turns[0] === step.turns[1] ? String(step.turns[0]) : `${step.turns[0]}–${step.turns[1]}`, rule(step),
    ]), "curriculum");
  }

  function counts(title, found, none) {
    return [el("h3", {}, title), found.length
      ? table(["what", "which", { text: "count", number: true }], found.map((each) => [each.what, text(each.which || each.name), number(each.count)]), title)
      : el("p", { class: "soft" }, none)];
  }

  async function log(run, name, node) {
    const found = await source.log(run, name);
    frame.fill(node, el("p", { class: "soft small" }, found.cut ? `the last part of ${number(found.size)} bytes` : `${number(found.size)} bytes`),
      el("pre", { tabindex: "0", "aria-label": `log ${name}` }, text(found.text)));
    node.lastChild.scrollTop = node.lastChild.scrollHeight;
  }

  function logs(run, names) {
    if (!names.length) return el("p", { class: "soft" }, "No logs.");
    const node = el("div", { "data-log": run });
    const choice = el("select", { "aria-label": "which log", onchange: () => log(run, choice.value, node) },
      el("option", { value: "" }, "choose a log"), names.map((name) => el("option", { value: name }, name)));
    choice.addEventListener("change", () => { if (!choice.value) frame.fill(node, ); });
    return el("div", {}, el("p", {}, choice), node);
  }

  function one(found, index) {
    const figures = Object.entries(found.headlines).map(([name, value]) => el("span", { class: "figure" }, el("strong", {}, number(value)), " ", name));
    return el("section", { class: "card", "data-run": index },
      el("h3", {}, text(found.label), " ", el("span", { class: "soft small mono" }, text(found.where))),
      el("p", { class: "figures" }, el("span", { class: "figure" }, el("strong", {}, found.status), " status"),
        el("span", { class: "figure" }, el("strong", {}, number(found.step)), " step"),
        // Stages may end before their last step, so a run that is done says nothing of its steps.
        typeof found.progress !== "number" || found.status === "done" ? null : el("span", { class: "figure" }, el("strong", {}, `${Math.round(found.progress * 100)} %`), " of all steps"),
        el("span", { class: "figure" }, el("strong", {}, duration(found.wall_seconds)), " wall time"),
        el("span", { class: "figure" }, el("strong", {}, found.updated ? new Date(found.updated * 1000).toISOString().replace("T", " ").slice(0, 19) : "–"), " newest row, UTC"), figures),
      found.problems.map((each) => el("p", { class: "note", "data-problem": "" }, text(each))),
      found.warnings.map((each) => el("p", { class: "note" }, text(each))),
      el("h3", {}, "Stages"),
      table(["", "stage", { text: "steps", number: true }, { text: "of", number: true }, { text: "time", number: true }], found.stages.map((each) => [
        SIGNS[each.state], text(each.name), number(each.done), number(each.total), duration(each.seconds)]), "stages"),
      el("h3", {}, "Curriculum"), curriculum(found.curriculum),
      counts("Failures by reason", found.failures, "Nothing failed."),
      counts("Alarms", found.alarms, "No alarm was raised."),
      found.alarm_lines.length ? box(`Alarms as told (${found.alarm_lines.length})`, el("pre", { tabindex: "0" }, text(found.alarm_lines.join("\n")))) : null,
      el("h3", {}, "Files"),
      found.checkpoints.length ? el("p", {}, "Checkpoints: ", text(found.checkpoints.join(", "))) : el("p", { class: "soft" }, "No checkpoints."),
      box(`Configuration${view.runs.length > 1 ? ` of ${found.label}` : ""}`, el("pre", { tabindex: "0" }, text(found.config || "config.yaml is not there"))),
      box(`Environment${view.runs.length > 1 ? ` of ${found.label}` : ""}`, el("pre", { tabindex: "0" }, text(JSON.stringify(found.environment, null, 2)))),
      el("h3", {}, "Logs"), logs(index, found.logs));
  }

  async function draw(main) {
    const all = await Promise.all(view.runs.map((_, index) => source.state(index)));
    // A log that is being read stays.
    const read = new Map([...main.querySelectorAll("[data-log]")].filter((each) => each.childNodes.length).map((each) => [each.dataset.log, each.parentElement]));
    frame.fill(main, el("h2", {}, "State"), el("div", { class: "runs" }, all.map(one)));
    for (const [run, node] of read) main.querySelector(`[data-log="${run}"]`)?.parentElement.replaceWith(node);
  }

  return { name: "state", title: "State", show: draw, refresh: () => draw(document.getElementById("main")) };
})();
