// Section Who waits for whom: phases of every role on one time line, and idle shares.
"use strict";

view.waits = (() => {
  const { el, duration, number, table, text } = frame;
  const PATTERNS = 4; // fills that differ without colour, by phase
  const SHOWN = 24; // intervals on the time line

  function look(found, role, phase) {
    const index = Math.max(0, found.phases[role].indexOf(phase));
    return found.waiting.includes(phase) ? "waiting" : `p${index % 7} f${index % PATTERNS}`;
  }

  // Within an interval the order of phases is not recorded: they are drawn in the order of the metrics.
  function track(found, role, intervals) {
    return el("div", { class: "track", role: "img", "aria-label": `phases of ${role}` },
      intervals.map((each) => {
        const idle = each.idle[role];
        let phases = Object.entries(each.roles[role] || {}).filter(([, seconds]) => seconds > 0);
        // Of a role without phases its idle share is known.
        if (!phases.length && idle !== undefined) phases = [["works", 1 - idle], ["idle", idle]];
        const spent = phases.reduce((all, [, seconds]) => all + seconds, 0);
        return el("div", { class: "slice", style: { flexGrow: String(Math.max(each.seconds || 0.01, 0.01)) },
          title: `step ${each.step}: ${phases.map(([phase, seconds]) => `${phase} ${each.roles[role] ? duration(seconds) : number(seconds)}`).join(", ")}${idle === undefined ? "" : `; idle ${Math.round(idle * 100)} %`}` },
        phases.map(([phase, seconds]) => el("span", { class: `phase ${look(found, role, phase)}`,
          style: { flexGrow: String(seconds / spent) } })));
      }));
  }

  function shares(found) {
    const rows = found.roles.flatMap((role) => {
      const phases = Object.entries(found.overall[role]).sort((a, b) => b[1] - a[1]);
      const all = phases.reduce((sum, [, seconds]) => sum + seconds, 0);
      return phases.map(([phase, seconds]) => [
        el("span", {}, el("span", { class: `phase key ${look(found, role, phase)}`, "aria-hidden": "true" }), " ", role), phase,
        duration(seconds), all ? `${((seconds / all) * 100).toFixed(1)} %` : "–",
        found.waiting.includes(phase) ? "waits" : "works",
      ]);
    });
    return table(["role", "phase", { text: "seconds", number: true }, { text: "share of the role", number: true }, ""], rows, "seconds by role and phase");
  }

  function idle(intervals, roles) {
    const rows = roles.flatMap((role) => {
      const own = intervals.map((each) => each.idle[role]).filter((value) => value !== undefined);
      if (!own.length) return [];
      const mean = own.reduce((sum, value) => sum + value, 0) / own.length;
      return [[role, el("span", { class: "meter", "aria-hidden": "true" }, el("span", { style: { width: `${mean * 100}%` } })),
        `${Math.round(mean * 100)} %`, `${Math.round(own.at(-1) * 100)} %`]];
    });
    if (!rows.length) return el("p", { class: "note" }, "This run has no idle shares: reinforcement learning records them, and it has not begun, or an older version ran it.");
    return table(["role", "waits", { text: "mean", number: true }, { text: "newest", number: true }], rows, "idle shares");
  }

  function one(found, index) {
    const intervals = found.intervals.filter((each) => Object.keys(each.roles).length).slice(-SHOWN);
    if (!intervals.length) return el("section", { class: "card" }, el("p", { class: "note" }, "No phases were recorded yet."));
    return el("section", { class: "card", "data-run": index },
      el("h3", {}, text(view.runs[index].label)),
      el("p", { class: "soft small" }, `Steps ${intervals[0].step} to ${intervals.at(-1).step}, left to right; the width of a slice is the time between two rows of metrics (short ones are drawn wider), and its parts are the shares of the phases. `,
        "Their order within a slice is not recorded. Hatched: the role waits."),
      el("div", { class: "lanes", tabindex: "0", role: "region", "aria-label": "time line" }, found.roles.map((role) => [el("div", { class: "lane" }, role), track(found, role, intervals)])),
      el("div", { class: "columns" }, el("div", {}, el("h3", {}, "Idle shares"), idle(found.intervals, found.roles)),
        el("div", {}, el("h3", {}, "Where time went, whole run"), shares(found))));
  }

  async function draw(main) {
    const all = await Promise.all(view.runs.map((_, index) => source.waits(index)));
    frame.fill(main, el("h2", {}, "Who waits for whom"), el("div", { class: "runs" }, all.map(one)));
  }

  return { name: "waits", title: "Who waits for whom", show: draw, refresh: () => draw(document.getElementById("main")) };
})();
