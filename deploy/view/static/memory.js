// Section Memory: recall by distance over time and its controls, told-at against recalled-at.
"use strict";

view.memory = (() => {
  const { el, number, table, text } = frame;
  const NAMES = {
    before_mrl: "held out, before MRL", after_mrl: "held out, after MRL", training: "training conversations",
    erased: "control: memory erased", most_frequent: "control: always the most frequent value",
  };
  let before = null;
  let charts = [];

  function percent(value) {
    return value === null || value === undefined ? "" : `${Math.round(value * 100)}`;
  }

  function overTime(over, damaged) {
    if (!over.iterations.length) {
      return el("p", { class: "note" }, damaged
        ? "No episode that can be read asks for a fact; State says which files cannot be read."
        : "No episode of this run asks for a fact, so there is no recall to show yet.");
    }
    const joined = over.joined > 1 ? `, ${over.joined} iterations to a column` : "";
    return [
      el("p", { class: "soft small" }, `Percent of the facts asked for that answers of training name, by turns since the fact was told, over iterations${joined}. Sampled answers, so below what evaluations show.`),
      el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "recall by distance over time" },
        el("table", { class: "heat", "data-table": "over-time" },
          el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "distance \\ iteration"), over.iterations.map((each) => el("th", { class: "number", scope: "col" }, each)))),
          el("tbody", {}, over.distances.map((distance, index) => el("tr", {}, el("th", { scope: "row" }, distance),
            over.recall[index].map((share, at) => (share === null ? el("td", { class: "cell empty" }, "·")
              : view.heatCell(share, percent(share), `distance ${distance}, iteration ${over.iterations[at]}: ${percent(share)} % of ${over.counts[index][at]} facts`))))),
          el("tr", {}, el("th", { scope: "row" }, "all"), over.all.map((share) => (share === null ? el("td", { class: "cell empty" }, "·") : view.heatCell(share, percent(share), `all: ${percent(share)} %`))))))),
    ];
  }

  function matrix(found) {
    if (!found.size) return null;
    const turns = [...Array(found.size).keys()];
    return [
      el("h3", {}, "Told in which turn, recalled in which"),
      el("p", { class: "soft small" }, "Percent recalled, of all facts asked for in training. Turn 0 is the opening.",
        found.left_out ? ` ${number(found.left_out)} facts asked for in later turns are left out.` : ""),
      el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "told at against recalled at" },
        el("table", { class: "heat", "data-table": "matrix" },
          el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "told \\ asked"), turns.slice(1).map((each) => el("th", { class: "number", scope: "col" }, each)))),
          el("tbody", {}, turns.slice(0, -1).map((told) => el("tr", {}, el("th", { scope: "row" }, told), turns.slice(1).map((asked) => {
            const share = found.recall[told][asked];
            return share === null ? el("td", { class: "cell empty" }, asked <= told ? "" : "·")
              : view.heatCell(share, percent(share), `told in turn ${told}, asked for in turn ${asked}: ${percent(share)} % of ${found.counts[told][asked]} facts`);
          })))))),
    ];
  }

  function evaluations(found) {
    const names = Object.keys(found);
    if (!names.length) return el("p", { class: "note" }, "This run has no evaluation yet: one is made before and one after reinforcement learning.");
    const keys = [...new Set(names.flatMap((name) => Object.keys(found[name].recall)))]
      .sort((a, b) => (a === "all") - (b === "all") || parseInt(a) - parseInt(b));
    return [
      el("h3", {}, "Recall by distance, with controls"),
      el("p", { class: "soft small" }, "Recall with its 95 % interval over conversations; the last line is how many facts. What remains with memory erased does not come from memory."),
      table([{ text: "turns since told" }, ...keys.map((key) => ({ text: key, number: true }))],
        names.map((name) => [NAMES[name] || name, ...keys.map((key) => cell(found[name], key))]), "recall by distance, with controls"),
    ];
  }

  function cell(one, key) {
    const share = one.recall[key];
    if (share === undefined) return "–";
    const span = one.intervals[key];
    return el("span", {}, share.toFixed(3),
      span ? el("span", { class: "soft small block" }, `${span[0].toFixed(2)}–${span[1].toFixed(2)}`) : null,
      one.counts[key] ? el("span", { class: "soft small block" }, `of ${number(one.counts[key])}`) : null);
  }

  // At most so many of a list: the first two, the last, and some in between.
  function spread(all, most) {
    if (all.length <= most) return all;
    const step = (all.length - 2) / (most - 2);
    return [all[0], ...Array.from({ length: most - 1 }, (_, index) => all[1 + Math.round(index * step)])];
  }

  // Recall as measured in the run: a colour for each distance, dashes with memory erased.
  function heldOut(found) {
    const kinds = ["kept", "erased"].filter((kind) => found[kind]);
    if (!kinds.length) return null;
    const distances = [...new Set(kinds.flatMap((kind) => Object.keys(found[kind])))]
      .sort((a, b) => (b === "all") - (a === "all") || parseInt(a) - parseInt(b));
    const drawn = spread(distances, view.plot.COLOURS);
    const curves = drawn.flatMap((distance, colour) => kinds.filter((kind) => found[kind][distance]).map((kind) => ({
      name: `${distance === "all" ? "all distances" : `distance ${distance}`}, memory ${kind}`, colour,
      dash: view.plot.DASHES[kind === "erased" ? 1 : 0],
      steps: found[kind][distance].map(([step]) => step), values: found[kind][distance].map(([, share]) => share),
    })));
    const left = distances.filter((distance) => !drawn.includes(distance));
    const where = view.plot.box();
    charts.push({ where, curves });
    return el("div", { "data-held-out": "" },
      el("h3", {}, "Held-out recall over time"),
      el("p", { class: "soft small" }, "Recall of held-out conversations by evaluation. Dashes: with memory erased before every question, the control. What the two have in common does not come from memory.",
        left.length ? ` Not drawn: distances ${left.join(", ")}; they are under Curves, eval/recall.` : ""),
      where, legend(curves));
  }

  function legend(curves) {
    return el("div", { class: "scroll legend" }, el("table", {},
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "recall"), el("th", { class: "number at", scope: "col" }, "newest"),
        el("th", { class: "number", scope: "col" }, "first"), el("th", { class: "number", scope: "col" }, "measured"))),
      el("tbody", {}, curves.map((each) => el("tr", {},
        el("td", {}, view.plot.swatch(each), " ", text(each.name)),
        el("td", { class: "number", "data-curve": each.name }, number(each.values.at(-1))),
        el("td", { class: "number" }, number(each.values[0])),
        el("td", { class: "number" }, each.values.length))))));
  }

  function clear() {
    for (const each of charts) each.chart?.destroy();
    charts = [];
  }

  async function draw(main) {
    const found = await Promise.all(view.runs.map((_, index) => source.memory(index)));
    const now = JSON.stringify(found);
    if (now === before && main.dataset.shown === "memory") return;
    before = now;
    clear();
    frame.fill(main, el("h2", {}, "Memory"), el("div", { class: "runs" }, found.map((one, index) =>
      el("section", { class: "card", "data-run": index },
        el("h3", {}, text(view.runs[index].label), el("span", { class: "soft small" }, ` · ${number(one.facts)} facts asked for in ${number(one.episodes)} episodes`)),
        overTime(one.over_time, view.unreadable(index).length), evaluations(one.evaluations), heldOut(one.held_out), matrix(one.matrix)))));
    // Only now are they as wide as they will be.
    for (const each of charts) each.chart = view.plot.chart(each.where, each.curves, { unit: "recall", range: [0, 1] });
  }

  document.addEventListener("theme", () => {
    if (frame.place().name === "memory") { before = null; draw(document.getElementById("main")); }
  });
  addEventListener("resize", () => {
    for (const each of charts) view.plot.resize(each.chart, each.where);
  });
  return {
    name: "memory", title: "Memory",
    show: (main, _, fresh) => { if (fresh) before = null; return draw(main); },
    refresh: () => draw(document.getElementById("main")),
    leave: clear,
  };
})();
