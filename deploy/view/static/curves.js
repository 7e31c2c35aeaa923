// Section Curves: every metric that the runs have, drawn when it comes into sight.
"use strict";

view.curves = (() => {
  const { el, text, number, button } = frame;
  const COLOURS = 7;
  const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3], [5, 5]]; // by run, so that colour is not alone
  const MOST = 12; // curves of one metric until all are asked for
  const SHOWN = ["", "p95"]; // statistics of a histogram until all are asked for
  let cards = new Map();
  let watcher = null;
  let found = null;
  let wanted = new Set();
  let batch = null;

  // Each curve keeps its colour: by its label among those of the metric.
  function styled(curves) {
    const kinds = [...new Set(curves.map((each) => `${each.label}:${each.statistic}`))];
    return curves.map((each) => ({
      ...each,
      colour: kinds.indexOf(`${each.label}:${each.statistic}`) % COLOURS,
      dash: view.runs.length > 1 ? DASHES[each.run % DASHES.length]
        : DASHES[Math.floor(kinds.indexOf(`${each.label}:${each.statistic}`) / COLOURS) % DASHES.length],
    }));
  }

  function caption(curve) {
    const parts = [view.runs.length > 1 ? view.runs[curve.run].label : "", curve.label, curve.statistic];
    return parts.filter(Boolean).join(" · ") || "value";
  }

  // Points of several curves on common steps; null where a curve has none.
  function aligned(curves) {
    const steps = [...new Set(curves.flatMap((each) => each.steps))].sort((a, b) => a - b);
    const place = new Map(steps.map((step, index) => [step, index]));
    return [steps, ...curves.map((each) => {
      const column = new Array(steps.length).fill(null);
      each.steps.forEach((step, index) => { column[place.get(step)] = each.values[index]; });
      return column;
    })];
  }

  function plot(where, curves, unit) {
    const ink = frame.colour("soft");
    const axis = { stroke: ink, grid: { stroke: frame.colour("faint"), width: 1 },
      ticks: { stroke: frame.colour("line"), width: 1 }, font: "12px system-ui, DejaVu Sans, sans-serif" };
    const width = Math.max(220, where.clientWidth);
    const chart = new uPlot({
      width, height: 200,
      scales: { x: { time: false } },
      legend: { show: false },
      cursor: { sync: { key: "steps" }, drag: { x: true, y: false } },
      axes: [{ ...axis, label: "step", labelSize: 16, labelFont: axis.font, size: 34 },
        { ...axis, size: 62, values: (_, ticks) => ticks.map(number) }],
      series: [{}, ...curves.map((each) => ({
        label: caption(each), stroke: frame.colour(`c${each.colour}`), width: 2, dash: each.dash, spanGaps: true,
        points: { show: each.steps.length < 30, size: 5 },
      }))],
      hooks: {
        setCursor: [(self) => point(where, self, curves)],
        drawClear: [(self) => bounds(self)],
      },
    }, aligned(curves), where);
    where.setAttribute("aria-label", `curve by step, in ${unit || "its unit"}`);
    return chart;
  }

  // Dotted lines where a stage begins.
  function bounds(self) {
    const context = self.ctx;
    context.save();
    context.strokeStyle = frame.colour("soft");
    context.setLineDash([1, 3]);
    for (const stage of found.stages.flat()) {
      if (stage.step <= self.scales.x.min || stage.step >= self.scales.x.max) continue;
      const x = Math.round(self.valToPos(stage.step, "x", true));
      context.beginPath();
      context.moveTo(x, self.bbox.top);
      context.lineTo(x, self.bbox.top + self.bbox.height);
      context.stroke();
    }
    context.restore();
  }

  // The legend shows values where the pointer is, else the newest.
  function point(where, self, curves) {
    const at = self.cursor.idx;
    const cells = where.parentElement.querySelectorAll("[data-curve]");
    cells.forEach((cell, index) => {
      const own = self.data[index + 1];
      const value = at === null || at === undefined ? curves[index].values.at(-1) : own[at];
      cell.textContent = number(value);
    });
    const label = where.parentElement.querySelector(".at");
    if (label) label.textContent = at === null || at === undefined ? "newest" : `step ${self.data[0][at]}`;
  }

  function legend(curves) {
    return el("div", { class: "scroll legend" }, el("table", {},
      el("thead", {}, el("tr", {}, el("th", {}, "curve"), el("th", { class: "number at" }, "newest"),
        el("th", { class: "number" }, "first"))),
      el("tbody", {}, curves.map((each) => el("tr", {},
        el("td", {}, swatch(each), " ", text(caption(each)),
          each.points > each.steps.length
            ? el("span", { class: "soft small" }, ` (${each.steps.length} of ${number(each.points)} points)`) : null),
        el("td", { class: "number", "data-curve": each.key }, number(each.values.at(-1))),
        el("td", { class: "number" }, number(each.values[0])))))));
  }

  function swatch(curve) {
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    svg.setAttribute("class", "swatch");
    svg.setAttribute("viewBox", "0 0 26 8");
    svg.setAttribute("aria-hidden", "true");
    const line = document.createElementNS(space, "line");
    for (const [name, value] of Object.entries({ x1: 0, x2: 26, y1: 4, y2: 4, "stroke-width": 3,
      "stroke-dasharray": curve.dash.join(" ") || "none" })) line.setAttribute(name, value);
    line.style.stroke = `var(--c${curve.colour})`;
    svg.append(line);
    return svg;
  }

  function draw(card) {
    const all = styled(card.curves);
    const plain = all.filter((each) => SHOWN.includes(each.statistic));
    const curves = card.all ? all : plain.slice(0, MOST * view.runs.length);
    card.chart?.destroy();
    const where = el("div", { class: "plot", role: "img" });
    const more = all.length > curves.length || card.all
      ? button(card.all ? "Fewer" : `All ${all.length} curves`, () => { card.all = !card.all; draw(card); }) : null;
    frame.fill(card.body, where, legend(curves), ...(more ? [more] : []));
    card.chart = curves.length ? plot(where, curves, card.metric.unit) : null;
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
      card.chart?.setSize({ width: Math.max(220, card.body.clientWidth), height: 200 });
    }
  });
  return { name: "curves", title: "Curves", show, refresh, leave };
})();
