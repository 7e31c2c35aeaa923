// Section Episodes: the list with its filters, and the conversation that was chosen.
"use strict";

view.episodes = (() => {
  const { el, text, number, button } = frame;
  const PAGE = 100;
  const NONE = {
    damaged: "No episode can be read.",
    none: "No episodes are recorded yet: memory reinforcement learning records them.",
  };
  let list = null;
  let asked = {};
  let run = 0;
  let chosen = null;
  let rows = [];
  let box = null;

  // What the place in the page says, as filters.
  function filters(words) {
    const names = ["step", "strategy", "worker", "failed", "distance", "reward_from", "reward_to", "text", "order", "start"];
    return Object.fromEntries(names.filter((name) => words.get(name)).map((name) => [name, words.get(name)]));
  }

  function move(change) {
    const words = { run, ...asked, id: chosen, ...change };
    if (change.start === undefined && change.id === undefined) delete words.start;
    frame.go("episodes", words);
  }

  function select(name, title, choices, all) {
    const node = el("select", { "data-filter": name, onchange: () => move({ [name]: node.value, id: null }) },
      el("option", { value: "" }, all), choices.map((each) => el("option", { value: each }, String(each))));
    node.value = asked[name] || "";
    return el("label", {}, title, node);
  }

  function field(name, title, type, more = {}) {
    const node = el("input", { type, "data-filter": name, value: asked[name] || "", ...more,
      onchange: () => move({ [name]: node.value, id: null }) });
    return el("label", {}, title, node);
  }

  function controls() {
    const choices = list.choices;
    const failed = el("input", { type: "checkbox", "data-filter": "failed", checked: asked.failed === "true",
      onchange: () => move({ failed: failed.checked ? "true" : "", id: null }) });
    const order = el("select", { "data-filter": "order", onchange: () => move({ order: order.value, id: null }) },
      [["", "latest first"], ["lowest", "lowest reward first"], ["highest", "highest reward first"]].map(([value, name]) =>
        el("option", { value }, name)));
    order.value = asked.order || "";
    const which = el("select", { "aria-label": "run", onchange: () => frame.go("episodes", { run: which.value }) },
      view.runs.map((each, index) => el("option", { value: index }, each.label)));
    which.value = String(run);
    return el("div", { class: "controls", role: "search" },
      view.runs.length > 1 ? el("label", {}, "Run", which) : null,
      select("step", "Curriculum step", choices.step || [], "all"),
      select("strategy", "Strategy", choices.strategy || [], "all"),
      select("distance", "Asks for a fact told", choices.distance || [], "any turns before"),
      field("reward_from", "Reward from", "number", { step: "0.05", class: "short" }),
      field("reward_to", "to", "number", { step: "0.05", class: "short" }),
      field("text", "Text or id", "search", { placeholder: "in queries and answers" }),
      el("label", {}, "Order", order),
      el("label", { class: "row" }, failed, "failed only"));
  }

  function row(one) {
    const open = () => move({ id: one.id, start: asked.start || "" });
    const link = el("a", { href: `#episodes?${new URLSearchParams({ run, ...asked, id: one.id })}` }, text(one.id));
    return el("tr", { class: "link", "data-id": one.id, "aria-selected": one.id === chosen ? "true" : null,
      onclick: (event) => { if (event.target.tagName !== "A") open(); } },
    el("td", { class: "mono" }, link, one.failed ? el("span", { class: "chip bad" }, "failed") : null),
    el("td", { class: "number" }, number(one.reward)),
    el("td", { class: "number" }, one.asked === null ? "" : `${one.recalled}/${one.asked}`),
    el("td", { class: "number" }, one.turns), el("td", {}, text(one.step || "–")),
    el("td", { class: "number" }, one.iteration));
  }

  function table() {
    const head = ["episode", "reward", "recalled", "turns", "step", "iteration"];
    const right = ["reward", "recalled", "iteration", "turns"];
    rows = list.episodes.map(row);
    const start = Number(asked.start || 0);
    const end = start + list.episodes.length;
    const pages = el("p", { class: "pages" },
      start ? button("Newer page", () => move({ start: String(Math.max(0, start - PAGE)), id: null })) : null,
      el("span", { class: "soft", role: "status", id: "counts" },
        list.matching ? `${number(start + 1)}–${number(end)} of ${number(list.matching)}` : "none",
        list.matching !== list.total ? ` that match, of ${number(list.total)} episodes` : " episodes",
        list.recorded && list.recorded > list.total ? `; the run has recorded ${number(list.recorded)}` : ""),
      end < list.matching ? button("Next page", () => move({ start: String(end), id: null })) : null);
    return [pages, el("div", { class: "scroll list" }, el("table", { class: "wide" },
      el("caption", { class: "hidden" }, "episodes"),
      el("thead", {}, el("tr", {}, head.map((each) => el("th", { scope: "col", class: right.includes(each) ? "number" : null }, each)))),
      el("tbody", {}, rows)))];
  }

  async function open(main) {
    for (const each of rows) {
      if (each.dataset.id === chosen) each.setAttribute("aria-selected", "true");
      else each.removeAttribute("aria-selected");
    }
    if (!chosen) {
      frame.fill(box, el("p", { class: "soft" }, "Choose an episode: click, or ", el("kbd", {}, "j"), " and ", el("kbd", {}, "k"), "."));
      return;
    }
    try {
      frame.fill(box, view.conversation.show(await source.episode(run, chosen)));
      box.dataset.id = chosen;
    } catch (failure) {
      frame.fill(box, el("p", { class: "note", role: "alert" }, text(failure.message)));
    }
    if (main) box.scrollTop = 0;
  }

  async function show(main, words, fresh) {
    const before = JSON.stringify([run, asked]);
    run = Number(words.get("run") || 0);
    asked = filters(words);
    const same = !fresh && JSON.stringify([run, asked]) === before && box?.isConnected;
    chosen = words.get("id");
    if (!same) {
      list = await source.episodes(run, { ...asked, count: source.whole ? undefined : PAGE });
      box = el("div", { class: "conversation", id: "conversation", "aria-live": "polite" });
      frame.fill(main, el("h2", {}, "Episodes"),
        list.total ? null : el("p", { class: "note" }, NONE[view.unreadable(run).length ? "damaged" : "none"]),
        problems(), controls(), el("div", { class: `split${chosen ? " chosen" : ""}` }, el("div", { class: "left" }, table()), box));
    }
    main.querySelector(".split").classList.toggle("chosen", Boolean(chosen));
    await open(true);
    if (chosen && innerWidth < 1000) document.getElementById("episode")?.scrollIntoView();
  }

  function problems() {
    return el("div", {}, view.unreadable(run).map((each) => el("p", { class: "note" }, text(each))));
  }

  async function refresh() {
    // The list of the newest episodes grows; an open conversation does not change.
    if (asked.start) return;
    const now = await source.episodes(run, { ...asked, count: PAGE });
    if (JSON.stringify(now) === JSON.stringify(list)) return;
    const fresh = !list.total && now.total;
    list = now;
    if (fresh) {
      await show(document.getElementById("main"), frame.place().words, true);
      return;
    }
    frame.fill(document.querySelector(".left"), table());
    for (const each of rows) if (each.dataset.id === chosen) each.setAttribute("aria-selected", "true");
  }

  function step(by) {
    if (frame.place().name !== "episodes" || !rows.length) return false;
    const at = rows.findIndex((each) => each.dataset.id === chosen);
    const next = rows[Math.max(0, Math.min(rows.length - 1, at < 0 ? 0 : at + by))];
    next.scrollIntoView({ block: "nearest" });
    move({ id: next.dataset.id, start: asked.start || "" });
    return true;
  }

  frame.key("j", "next episode", () => step(1));
  frame.key("k", "episode before", () => step(-1));
  frame.key("Escape", "close the episode", () => {
    if (frame.place().name !== "episodes" || !chosen) return false;
    move({ id: null, start: asked.start || "" });
    return true;
  });
  return { name: "episodes", title: "Episodes", show, refresh };
})();
