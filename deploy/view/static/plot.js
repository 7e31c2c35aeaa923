// Curves by step, on a canvas: what sections that draw them share. A curve is
// { name, colour (0 to 6), dash, steps, values }; a value is null where there is none.
"use strict";

view.plot = (() => {
  const { el, number } = frame;
  const COLOURS = 7;
  const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3], [5, 5]]; // where colour alone does not tell apart
  const HEIGHT = 200;

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

  function width(where) {
    return Math.max(220, where.clientWidth);
  }

  // Draws into `where`. more: `unit`, `range` of values where it is known, `stages` that begin.
  function chart(where, curves, { unit, range = null, stages = [] }) {
    const axis = { stroke: frame.colour("soft"), grid: { stroke: frame.colour("faint"), width: 1 },
      ticks: { stroke: frame.colour("line"), width: 1 }, font: "12px system-ui, DejaVu Sans, sans-serif" };
    const drawn = new uPlot({
      width: width(where), height: HEIGHT,
      scales: { x: { time: false }, y: range ? { range } : {} },
      legend: { show: false },
      cursor: { sync: { key: "steps" }, drag: { x: true, y: false } },
      axes: [{ ...axis, label: "step", labelSize: 16, labelFont: axis.font, size: 34 },
        { ...axis, size: 62, values: (_, ticks) => ticks.map(number) }],
      series: [{}, ...curves.map((each) => ({
        label: each.name, stroke: frame.colour(`c${each.colour}`), width: 2, dash: each.dash, spanGaps: true,
        points: { show: each.steps.length < 30, size: 5 },
      }))],
      hooks: {
        setCursor: [(self) => point(where, self, curves)],
        drawClear: [(self) => bounds(self, stages)],
      },
    }, aligned(curves), where);
    where.setAttribute("aria-label", `curve by step, in ${unit || "its unit"}`);
    return drawn;
  }

  // Dotted lines where a stage begins.
  function bounds(self, stages) {
    const context = self.ctx;
    context.save();
    context.strokeStyle = frame.colour("soft");
    context.setLineDash([1, 3]);
    for (const stage of stages) {
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

  function resize(drawn, where) {
    drawn.setSize({ width: width(where), height: HEIGHT });
  }

  return { COLOURS, DASHES, chart, resize, swatch, box: () => el("div", { class: "plot", role: "img" }) };
})();
