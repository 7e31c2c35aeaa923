// The page of `engram label`: one question at a time, ranked by keys or by touch; and the progress of all.
"use strict";

const label = (() => {
  const { el, text, button } = frame;
  const LETTERS = ["A", "B", "C", "D"];
  const PLACES = ["best", "second", "third", "fourth"];
  const RETRY = 2000; // milliseconds until a judgement that the server did not take is sent again
  let state = null;
  let ranks = [];
  let tie = false; // whether the next answer gets the rank of the last one
  let steps = []; // answers in the order in which they were ranked
  let busy = false;
  let here = false; // whether this section is the one that is shown
  let area = null;

  function kept(key, value) {
    try {
      if (value === undefined) return localStorage.getItem(`engram-${key}`);
      if (value === null) localStorage.removeItem(`engram-${key}`);
      else localStorage.setItem(`engram-${key}`, value);
    } catch { /* A browser may not be allowed to keep anything. */ }
    return null;
  }

  const named = new URLSearchParams(location.search).get("labeller");
  let labeller = named || kept("labeller") || "";

  function identity() {
    return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  async function post(path, body) {
    const answer = await fetch(`api/${path}`, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ labeller, ...body }),
    });
    const told = await answer.json();
    if (!answer.ok) throw Object.assign(new Error(told.error || "the server refused it"), { refused: answer.status < 500 });
    return told;
  }

  const main = () => document.getElementById("main");
  const active = () => here && state && state.question && !busy;

  function say(words, alarm = false) {
    const node = document.getElementById("said");
    if (node) frame.fill(node, words ? el("p", { class: alarm ? "note alarm" : "soft", role: alarm ? "alert" : "status" }, words) : null);
  }

  // --- ranks --------------------------------------------------------------------------------------

  function clear() {
    ranks = state.question ? state.question.answers.map(() => null) : [];
    steps = [];
    tie = false;
  }

  function rank(place) {
    if (place >= ranks.length || ranks[place] !== null) return;
    const last = Math.max(0, ...ranks.filter((each) => each !== null));
    ranks[place] = tie && last ? last : last + 1;
    steps.push(place);
    tie = false;
    draw();
  }

  function back() {
    if (tie) tie = false;
    else if (steps.length) ranks[steps.pop()] = null;
    draw();
  }

  function alike() {
    if (!steps.length) {
      ranks = ranks.map(() => 1);
      steps = ranks.map((_, place) => place);
    } else if (ranks.includes(null)) tie = !tie;
    draw();
  }

  // What is saved: the only answer left is the worst, or tied with the last one where that was asked.
  function whole() {
    const open = ranks.filter((each) => each === null).length;
    if (open > 1 || (open === 1 && ranks.length === open)) return null;
    const last = Math.max(0, ...ranks.filter((each) => each !== null));
    return ranks.map((each) => (each === null ? (tie ? last : last + 1) : each));
  }

  // --- saving -------------------------------------------------------------------------------------

  async function send(path, judgement) {
    busy = true;
    if (path === "judge") kept("pending", JSON.stringify({ source: state.source, labeller, judgement }));
    try {
      for (;;) {
        try {
          state = await post(path, judgement);
          break;
        } catch (failure) {
          if (failure.refused) throw failure;
          say(`Not saved yet: ${failure instanceof TypeError ? "the server does not answer" : failure.message}. It is sent again every ${RETRY / 1000} s.`, true);
          await new Promise((done) => { setTimeout(done, RETRY); });
        }
      }
      if (path === "judge") kept("pending", null);
      begin();
    } catch (failure) {
      busy = false;
      if (path === "judge") kept("pending", null);
      say(failure.message, true);
    }
  }

  function judge(verdict, shownRanks = null) {
    if (!active()) return;
    const written = area ? area.value.trim() : "";
    send("judge", { id: identity(), question: state.question.id, verdict, ranks: shownRanks, written: verdict === "skipped" ? null : written || null });
  }

  function save() {
    if (!active()) return;
    if (!ranks.length) {
      if (area.value.trim()) judge("demonstration");
      else say("Write an answer first (w), or skip (s).", true);
      return;
    }
    const told = whole();
    if (told) judge("ranked", told);
    else say("Rank the answers first: from best to worst, = for a tie.", true);
  }

  const bad = () => active() && ranks.length && judge("all_bad");
  const skip = () => judge("skipped");
  const undo = () => {
    if (busy || !state) return;
    if (state.last) send("undo", { id: state.last });
    else say("There is nothing to take back.", true);
  };
  const write = () => area && area.focus();

  // --- drawing ------------------------------------------------------------------------------------

  function begin() {
    busy = false;
    if (!here) return;
    clear();
    const before = state.before;
    area = null;
    if (before && before.ranks) {
      ranks = [...before.ranks];
      steps = ranks.map((_, place) => place).sort((one, other) => ranks[one] - ranks[other]);
    }
    render(before);
  }

  function card(answer, place) {
    const own = ranks[place];
    const ties = own !== null && ranks.filter((each) => each === own).length > 1;
    const name = own === null ? "" : `${PLACES[own - 1]}${ties ? " (tie)" : ""}`;
    return el("section", { class: `card answer${own === null ? "" : " ranked"}`, "data-place": place, "data-rank": own === null ? "" : own },
      el("div", { class: "of" },
        button([LETTERS[place], el("span", { class: "hidden" }, own === null ? " is the next best" : " is ranked")], () => rank(place),
          { class: "letter", "aria-pressed": own === null ? "false" : "true" }),
        el("span", { class: "place", "aria-live": "polite" }, name)),
      el("p", { class: "words" }, text(answer)));
  }

  function draw() {
    if (!active()) return;
    frame.fill(document.getElementById("answers"), state.question.answers.map(card));
    const node = document.getElementById("tie");
    if (node) node.setAttribute("aria-pressed", String(tie));
    const told = whole();
    say(tie ? "The next answer is tied with the last one." : told ? "Enter saves it." : "");
  }

  function said(turn) {
    return [["query", turn.query], ["answer", turn.answer]].filter(([, words]) => words).map(([who, words]) =>
      el("div", { class: "said" }, el("div", { class: "soft small" }, who), el("div", { class: "words" }, text(words))));
  }

  function controls(count) {
    const tieButton = count ? button([el("kbd", {}, "="), " tie"], alike, { id: "tie", "aria-pressed": "false" }) : null;
    return el("div", { class: "actions" },
      button([el("kbd", {}, "Enter"), " save"], save, { id: "save", class: "main" }), tieButton,
      count ? button([el("kbd", {}, "⌫"), " take back"], back, { id: "back" }) : null,
      count ? button([el("kbd", {}, "x"), count === 2 ? " both bad" : " all bad"], bad, { id: "bad" }) : null,
      button([el("kbd", {}, "s"), " skip"], skip, { id: "skip" }),
      button([el("kbd", {}, "u"), " undo"], undo, { id: "undo" }));
  }

  function head() {
    const { counts } = state;
    frame.fill(document.getElementById("status"),
      el("span", { class: "chip", id: "done" }, `${counts.judged} of ${counts.total} judged`), " ",
      button(["by ", text(labeller)], rename, { title: "label under another name", id: "who" }));
  }

  function render(before) {
    head();
    const { question } = state;
    if (!question) {
      const rest = state.counts.total - state.counts.judged - state.counts.skipped;
      frame.fill(main(), el("h2", { id: "over" }, "Nothing left to judge"),
        el("p", {}, rest > 0 ? `Others are on the last ${rest}. ` : "", "Thank you. You can take your last judgement back:"),
        el("p", {}, button([el("kbd", {}, "u"), " undo"], undo, { id: "undo" })), el("div", { id: "said" }));
      return;
    }
    const count = question.answers.length;
    area = el("textarea", { id: "written", rows: count ? 2 : 6, spellcheck: "true",
      onkeydown: (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save(); } });
    if (before && before.written) area.value = before.written;
    frame.fill(main(),
      question.history.length ? el("section", { class: "history", "aria-label": "said before" },
        el("h2", {}, "Said before"), question.history.map(said)) : null,
      el("section", { class: "prompt" }, el("h2", {}, "Prompt"), el("p", { class: "words", id: "prompt" }, text(question.prompt))),
      el("h2", { id: "task", "data-question": question.id }, count ? "Which answer is best?" : "What would a good answer be?"),
      el("div", { id: "answers", class: `answers of${count}` }),
      el("label", { class: "write" }, el("span", {}, el("kbd", {}, "w"), count ? " a better answer, if you have one" : " your answer",
        el("span", { class: "soft" }, " (Esc leaves it, Ctrl+Enter saves)")), area),
      controls(count), el("div", { id: "said" }));
    if (count) draw();
    if (before) say(`Taken back: it was ${before.verdict.replace("_", " ")}.`);
    scrollTo(0, 0);
    main().focus({ preventScroll: true });
  }

  function rename() {
    const field = el("input", { type: "text", maxlength: 60, id: "name", autocomplete: "name", value: labeller });
    const done = () => {
      if (!field.value.trim()) return;
      labeller = field.value.trim();
      kept("labeller", labeller);
      open();
    };
    field.addEventListener("keydown", (event) => { if (event.key === "Enter") done(); });
    state = null;
    frame.fill(main(), el("h2", {}, "Who labels?"), el("p", {}, "The name is kept with every judgement."),
      el("div", { class: "controls" }, el("label", {}, "Name", field), button("Begin", done, { id: "begin" })), el("div", { id: "said" }));
    field.focus();
  }

  // A judgement that was made and not acknowledged is sent before anything else.
  async function open() {
    try {
      state = await post("next", {});
    } catch (failure) {
      say(failure.message, true);
      return;
    }
    const pending = JSON.parse(kept("pending") || "null");
    if (pending && pending.source === state.source && pending.labeller === labeller) await send("judge", pending.judgement);
    else begin();
  }

  async function show(_main, _words, fresh) {
    here = true;
    if (!fresh || busy) return;
    if (!labeller) rename();
    else await open();
  }

  const leave = () => { here = false; };

  return { show, leave, rank, back, alike, bad, skip, undo, save, write, active };
})();

label.progress = async (main) => {
  const { el, text } = frame;
  const answer = await fetch("api/progress");
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error);
  const rows = Object.entries(told.people).map(([name, each]) =>
    [text(name), each.ranked, each.all_bad, each.demonstration, each.written, each.skipped]);
  const columns = ["ranked", "all bad", "demonstrations", "written answers", "skipped"].map((name) => ({ text: name, number: true }));
  frame.fill(main, el("h2", {}, "Progress"),
    frame.table(["labeller", ...columns], rows, "judgements by labeller"),
    el("p", { id: "agreement" }, told.agreement),
    el("p", {}, `${told.preferences} preference rows and ${told.demonstrations} demonstrations of ${told.questions} questions; all judgements are in `,
      el("code", {}, text(told.labels)), "."),
    told.notes.map((note) => el("p", { class: "note" }, text(note))));
};

frame.start({
  title: "engram label",
  sections: [
    { name: "label", title: "Label", show: label.show, leave: label.leave },
    { name: "progress", title: "Progress", show: label.progress },
  ],
});
{
  const when = (act) => (event) => {
    // Enter on a button presses that button.
    if (!label.active() || (event.key === "Enter" && event.target.closest?.("button, a"))) return false;
    act();
    return true;
  };
  ["a", "b", "c", "d"].forEach((letter, place) => frame.key(letter, `${letter.toUpperCase()} is the next best`, when(() => label.rank(place))));
  frame.key("=", "tie: the next is as good as the last; first of all: all are alike", when(label.alike));
  frame.key("Backspace", "take the last rank back", when(label.back));
  frame.key("x", "all answers are bad", when(label.bad));
  frame.key("w", "write a better answer", when(label.write));
  frame.key("s", "skip", when(label.skip));
  frame.key("u", "undo the last judgement", () => label.undo());
  frame.key("Enter", "save, and go on", when(label.save));
}
