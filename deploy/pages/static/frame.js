// The frame of every page: making elements, showing foreign text, tables, themes, sections, keys.
// Foreign text only ever becomes text nodes.
"use strict";

const frame = (() => {
  // Characters that show as nothing, or that change how what follows is shown.
  const STEERING = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g;
  const JOINERS = "\u200c\u200d"; // Part of words and emoji.
  const keys = new Map();
  let shown = null;

  // el("p", {class: "soft", onclick: f}, "text", child, …); no attribute holds markup.
  function el(name, properties = {}, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (value === null || value === undefined || value === false) continue;
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (key === "style") Object.assign(node.style, value);
      else if (key === "value" || key === "checked" || key === "htmlFor") node[key] = value;
      else node.setAttribute(key, value === true ? "" : String(value));
    }
    add(node, children);
    return node;
  }

  function add(node, children) {
    for (const child of children.flat(Infinity)) {
      if (child === null || child === undefined || child === false) continue;
      node.append(child instanceof Node ? child : String(child));
    }
  }

  function fill(node, ...children) {
    node.replaceChildren();
    add(node, children);
  }

  // A foreign text: its own direction, and marks in place of characters that steer.
  function text(value) {
    const node = el("bdi", { class: "foreign" });
    let at = 0;
    for (const match of value.matchAll(STEERING)) {
      if (JOINERS.includes(match[0])) continue;
      node.append(value.slice(at, match.index));
      const code = match[0].codePointAt(0);
      const name = "U+" + code.toString(16).toUpperCase().padStart(4, "0");
      const sign = code < 32 ? String.fromCodePoint(0x2400 + code) : name;
      node.append(el("span", { class: "control", title: name }, sign));
      at = match.index + match[0].length;
    }
    node.append(value.slice(at));
    return node;
  }

  function number(value) {
    if (value === null || value === undefined) return "–";
    if (Number.isInteger(value)) return value.toLocaleString("en-US");
    const size = Math.abs(value);
    if (size >= 1e5 || (size < 1e-3 && size > 0)) return value.toExponential(2);
    return String(Number(value.toPrecision(4)));
  }

  function duration(seconds) {
    if (seconds === null || seconds === undefined) return "–";
    if (seconds < 60) return seconds.toFixed(seconds < 10 ? 1 : 0) + " s";
    if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
    return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
  }

  // head: [{text, number?}] or texts; rows: arrays of texts or nodes.
  function table(head, rows, caption) {
    const columns = head.map((each) => (typeof each === "string" ? { text: each } : each));
    const kind = (index) => (columns[index].number ? "number" : null);
    return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption || "table" },
      el("table", {},
        caption ? el("caption", { class: "hidden" }, caption) : null,
        el("thead", {}, el("tr", {}, columns.map((each, index) =>
          el("th", { scope: "col", class: kind(index) }, each.text)))),
        el("tbody", {}, rows.map((row) =>
          el("tr", {}, row.map((cell, index) => el("td", { class: kind(index) }, cell)))))));
  }

  function button(name, onclick, more = {}) {
    return el("button", { type: "button", onclick, ...more }, name);
  }

  function copyButton(words) {
    const node = button("Copy", async () => {
      try {
        await navigator.clipboard.writeText(words);
      } catch {
        // Where the page may not write to the clipboard, an old way still works.
        const area = el("textarea", {}, words);
        document.body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
      }
      node.textContent = "Copied";
      setTimeout(() => { node.textContent = "Copy"; }, 1500);
    });
    return node;
  }

  function chosenTheme() {
    try {
      return localStorage.getItem("engram-theme");
    } catch {
      return null;
    }
  }

  function setTheme(theme) {
    document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem("engram-theme", theme);
    } catch { /* A file may not be allowed to keep anything. */ }
    document.dispatchEvent(new Event("theme"));
  }

  function startTheme() {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const asked = new URLSearchParams(location.search).get("theme");
    const theme = ["light", "dark"].includes(asked) ? asked : chosenTheme();
    document.documentElement.dataset.theme = theme || (dark.matches ? "dark" : "light");
    dark.addEventListener("change", () => {
      if (!chosenTheme()) setTheme(dark.matches ? "dark" : "light");
    });
  }

  function toggleTheme() {
    setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  }

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  }

  // key(name, "what it does", handler): shown in the help, off while somebody types.
  function key(name, meaning, handler) {
    keys.set(name, { meaning, handler });
  }

  function pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest?.("input, select, textarea");
    if (typing) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const found = keys.get(event.key);
    if (found && found.handler(event) !== false) event.preventDefault();
  }

  function help() {
    const open = document.querySelector("dialog");
    if (open) return open.close();
    const rows = [...keys].map(([name, { meaning }]) => [el("kbd", {}, name), meaning]);
    const dialog = el("dialog", { "aria-label": "Keys" }, el("h2", {}, "Keys"),
      table(["Key", "Does"], rows, "keys"),
      el("p", {}, button("Close", () => dialog.close())));
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
    return undefined;
  }

  // The place in the page, as in #episodes?run=0&id=…, so that a link leads back to it.
  function place() {
    const [name, query] = location.hash.slice(1).split("?");
    return { name, words: new URLSearchParams(query || "") };
  }

  function go(name, words = {}, replace = false) {
    const query = new URLSearchParams(
      Object.entries(words).filter(([, value]) => value !== "" && value !== null && value !== undefined));
    const hash = `#${name}${[...query].length ? `?${query}` : ""}`;
    if (hash === location.hash) return show();
    if (replace) {
      history.replaceState(null, "", hash);
      return undefined;
    }
    location.hash = hash;
    return undefined;
  }

  let sections = [];

  async function show() {
    const { name, words } = place();
    const section = sections.find((each) => each.name === name) || sections[0];
    for (const link of document.querySelectorAll("nav a")) {
      if (link.dataset.name === section.name) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    const main = document.getElementById("main");
    if (shown !== section) {
      shown?.leave?.();
      main.replaceChildren(el("p", { class: "soft", role: "status" }, "Reading …"));
    }
    const fresh = shown !== section;
    shown = section;
    try {
      await section.show(main, words, fresh);
      main.dataset.shown = section.name;
    } catch (failure) {
      main.replaceChildren(el("p", { class: "note", role: "alert" }, text(String(failure.message || failure))));
    }
  }

  // start({title, sections: [{name, title, show(main, words, fresh), refresh?}], status})
  function start(page) {
    sections = page.sections;
    const theme = button("Theme", toggleTheme, { title: "light or dark (t)" });
    const ask = button("Keys", help, { title: "which keys there are (?)" });
    document.getElementById("head").append(
      el("div", { class: "bar" }, el("h1", {}, page.title), el("div", { id: "status", role: "status" }),
        el("span", { class: "grow" }), theme, ask),
      el("nav", { "aria-label": "Sections" }, sections.map((each, index) =>
        el("a", { href: `#${each.name}`, "data-name": each.name }, each.title,
          el("kbd", { "aria-hidden": "true" }, index + 1)))));
    sections.forEach((each, index) => key(String(index + 1), each.title, () => go(each.name)));
    key("t", "light or dark", toggleTheme);
    key("?", "these keys", help);
    document.addEventListener("keydown", pressed);
    addEventListener("hashchange", show);
    show();
  }

  function refresh() {
    return shown?.refresh?.();
  }

  startTheme(); // before anything is drawn
  return { add, button, colour, copyButton, duration, el, fill, go, key, number, place, refresh, start, table, text };
})();
