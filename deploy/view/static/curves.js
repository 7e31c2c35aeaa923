// Section Curves: every metric that the runs have, drawn when it comes into sight.
"use strict";

view.curves = (() => {
  const { el, text, number, button } = frame;
  const { COLOURS, DASHES, swatch } = view.plot;
  const MOST = 12; // curves of one metric until all are asked for
  const SHOWN = ["", "p95"]; // statistics of a histogram until all are asked for
  let cards = new Map();
  let watcher = null;
  let found = null;
  let wanted = new Set();
  let batch = null;

  // Each curve keeps its colour: by its label among those of the metric. Dashes go by run where
  // there are several.
  function styled(curves) {
    const kinds = [...new Set(curves.map((each) => `${each.label}:${each.statistic}`))];
    return curves.map((each) => ({
      ...each,
      name: caption(each),
      colour: kinds.indexOf(`${each.label}:${each.statistic}`) % COLOURS,
      dash: view.runs.length > 1 ? DASHES[each.run % DASHES.length]
        : DASHES[Math.floor(kinds.indexOf(`${each.label}:${each.statistic}`) / COLOURS) % DASHES.length],
    }));
  }

  function caption(curve) {
    const parts = [view.runs.length > 1 ? view.runs[curve.run].label : "", curve.label, curve.statistic];
    return parts.filter(Boolean).join(" · ") || "value";
  }

  function legend(curves) {
    return el("div", { class: "scroll legend" }, el("table", {},
      el("thead", {}, el("tr", {}, el("th", {}, "curve"), el("th", { class: "number at" }, "newest"),
        el("th", { class: "number" }, "first"))),
      el("tbody", {}, curves.map((each) => el("tr", {},
        el("td", {}, swatch(each), " ", text(each.name),
          each.points > each.steps.length
            ? el("span", { class: "soft small" }, ` (${each.steps.length} of ${number(each.points)} points)`) : null),
        el("td", { class: "number", "data-curve": each.key }, number(each.values.at(-1))),
        el("td", { class: "number" }, number(each.values[0])))))));
  }

  function draw(card) {
    const all = styled(card.curves);
    const plain = all.filter((each) => SHOWN.includes(each.statistic));
    const curves = card.all ? all : plain.slice(0, MOST * view.runs.length);
    card.chart?.destroy();
    const where = view.plot.box();
    const more = all.length > curves.length || card.all
      ? button(card.all ? "Fewer" : `All ${all.length} curves`, () => { card.all = !card.all; draw(card); }) : null;
    frame.fill(card.body, where, legend(curves), ...(more ? [more] : []));
    card.chart = curves.length
      ? view.plot.chart(where, curves, { unit: card.metric.unit, stages: found.stages.flat() }) : null;
    card.node.dataset.drawn = "true";
  }

  function cardOf(metric) {
    const good = { higher: "higher is better", lower: "lower is better" }[metric.better];
    const body = el("div", { class: "plotted" });
    const node = el("section", { class: "card metric", "data-metric": metric.name },
      el("h3", {}, text(metric.name), " ",
        el("span", { class: "soft small" }, [metric.unit && metric.unit !== "1" ? metric.unit : "", good].filter(Boolean).join(", "))),
      el("p", { class: "small" }, text(metric.help), "."),
      el("p", { class: "soft small" }, metric.denominator ? "of: " : "", text(metric.denominator)), body);
    return { metric, node, body, curves: [], all: false, chart: null };
  }

  // Metrics that come into sight together are asked for together.
  function seen(entries) {
    for (const entry of entries) {
      const name = entry.target.dataset.metric;
      if (entry.isIntersecting) wanted.add(name);
      else wanted.delete(name);
    }
    if (batch === null) batch = setTimeout(load, 30);
  }

  async function load() {
    batch = null;
    const names = [...wanted].filter((name) => cards.has(name));
    if (!names.length) return;
    const points = await source.series(names);
    for (const name of names) {
      const card = cards.get(name);
      if (!card) continue;
      card.curves = points[name];
      draw(card);
    }
  }

  function filter(grid, word, empty) {
    const words = word.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const { metric, node } of cards.values()) {
      const all = `${metric.name} ${metric.help} ${metric.denominator}`.toLowerCase();
      node.hidden = !words.every((each) => all.includes(each));
      count += node.hidden ? 0 : 1;
    }
    empty.textContent = `${count} of ${cards.size} metrics`;
  }

  function stagesLine() {
    const lines = found.stages.map((stages) => stages.map((each) => `${each.name} after step ${each.step}`).join(", "));
    return lines.some(Boolean) ? el("p", { class: "soft small" }, "Dotted lines: a stage begins (", text(lines.join("; ")), ").") : null;
  }

  async function show(main, words, fresh) {
    if (!fresh) return;
    found = await source.metrics();
    cards = new Map(found.metrics.map((metric) => [metric.name, cardOf(metric)]));
    const grid = el("div", { class: "columns grid" }, [...cards.values()].map((card) => card.node));
    const count = el("span", { class: "soft", role: "status" });
    const search = el("input", { type: "search", placeholder: "name or meaning", "aria-label": "search metrics",
      value: words.get("search") || "",
      oninput: () => { filter(grid, search.value, count); frame.go("curves", { search: search.value }, true); } });
    const families = [...new Set(found.metrics.map((metric) => metric.family))];
    const list = el("select", { "aria-label": "go to a family", onchange: () => {
      search.value = list.value; search.dispatchEvent(new Event("input"));
    } }, el("option", { value: "" }, "all families"), families.map((name) => el("option", { value: `${name}/` }, name)));
    frame.fill(main, 
      el("h2", {}, "Curves"),
      found.metrics.length ? el("div", { class: "controls" }, el("label", {}, "Search", search),
        el("label", {}, "Family", list), count)
        : el("p", { class: "note" }, "No step of a run was logged yet. Curves appear here as rows of metrics.jsonl come."),
      view.runs.length > 1 ? el("p", { class: "soft small" }, "The dashes of a curve tell runs apart, colours tell labels apart.") : null,
      stagesLine(), grid);
    filter(grid, search.value, count);
    watcher = new IntersectionObserver(seen, { rootMargin: "200px" });
    for (const card of cards.values()) watcher.observe(card.node);
  }

  async function refresh() {
    const now = await source.metrics();
    if (now.metrics.length !== found.metrics.length) {
      wanted = new Set();
      watcher?.disconnect();
      await show(document.getElementById("main"), frame.place().words, true);
    } else {
      found = now;
      await load();
    }
  }

  function leave() {
    watcher?.disconnect();
    for (const card of cards.values()) card.chart?.destroy();
    cards = new Map();
    wanted = new Set();
  }

  document.addEventListener("theme", () => {
    for (const card of cards.values()) if (card.chart) draw(card);
  });
  addEventListener("resize", () => {
    for (const card of cards.values()) {
      if (card.chart) view.plot.resize(card.chart, card.body);
    }
  });
  return { name: "curves", title: "Curves", show, refresh, leave };
})();
