// One conversation, turn by turn.
"use strict";

view.conversation = (() => {
  const { el, text, number } = frame;
  // A sign and a word beside each colour.
  const MARKS = {
    told: ["●", "told here, asked for later"],
    recalled: ["✓", "recalled"],
    wrong: ["≠", "wrong: another value of this conversation"],
    asked: ["→", "value asked for"],
  };

  function marked(segments) {
    if (!segments.length) return el("span", { class: "soft" }, "(nothing)");
    return segments.map((each) => (each.mark
      ? el("mark", { class: each.mark, title: MARKS[each.mark][1] },
        el("span", { "aria-hidden": "true", class: "sign" }, MARKS[each.mark][0]), text(each.text),
        el("span", { class: "hidden" }, ` (${MARKS[each.mark][1]})`))
      : text(each.text)));
  }

  function line(name, ...content) {
    return el("div", { class: "said" }, el("span", { class: "who" }, name), el("div", { class: "words" }, ...content));
  }

  function fact(one) {
    const ago = `told ${one.distance} turn${one.distance === 1 ? "" : "s"} before, in turn ${one.said_in}`;
    const state = one.recalled ? "recalled" : "missed";
    return el("li", { "data-fact": one.value, "data-state": state },
      el("mark", { class: state }, el("span", { class: "sign", "aria-hidden": "true" }, one.recalled ? "✓" : "✗"),
        text(one.value)), ` ${state}; ${ago}`,
      one.outdated.length ? [" · replaced ", text(one.outdated.join(", "))] : null,
      one.outdated_named.length ? el("strong", {}, " · the answer names the outdated ", text(one.outdated_named.join(", "))) : null);
  }

  function rewards(turn) {
    if (turn.reward === null && !turn.rewards.length) return null;
    const most = Math.max(1e-9, ...turn.rewards.map((each) => Math.abs(each.share || 0)));
    const rows = turn.rewards.map((each) => el("tr", {},
      el("th", { scope: "row" }, text(each.name)),
      el("td", { class: "bars" }, el("span", {
        class: `fill${(each.share || 0) < 0 ? " below" : ""}`,
        style: { width: `${(Math.abs(each.share || 0) / most) * 100}%` },
      })),
      el("td", { class: "number" }, each.share === null ? "–" : number(each.share)),
      el("td", { class: "small soft" }, entered(each))));
    return el("div", { class: "scroll" }, el("table", { class: "rewards" },
      el("thead", {}, el("tr", {}, ["component", "part of the total", { text: "part" }, "how it entered"].map((each) =>
        el("th", { scope: "col", class: each.text ? "number" : null }, each.text || each)))),
      el("tbody", {}, rows, el("tr", { class: "sum" }, el("th", { scope: "row" }, "reward"), el("td"),
        el("td", { class: "number" }, turn.reward === null ? "none" : number(turn.reward)),
        el("td", { class: "small soft" }, total(turn))))));
  }

  function entered(one) {
    if (one.weight === null) return `raw ${number(one.raw)}, looked at only`;
    const parts = [`raw ${number(one.raw)}`];
    if (one.low !== null || one.high !== null) parts.push(`held to [${number(one.low)}, ${number(one.high)}]`);
    if (one.mean !== 0 || one.std !== 1) parts.push(`(… − ${number(one.mean)}) / ${number(one.std)} = ${number(one.value)}`);
    parts.push(`weight ${number(one.weight)}`);
    return parts.join(", ");
  }

  function total(turn) {
    const sum = turn.rewards.reduce((all, each) => all + (each.share || 0), 0);
    if (turn.reward === null) return "not scored";
    const mapped = Math.abs(sum - turn.reward) > 1e-6 ? `weighted mean ${number(sum)}, mapped or scaled by the configuration` : "sum of the parts";
    return turn.reward_std ? `${mapped}; the reward model's spread ${number(turn.reward_std)}` : mapped;
  }

  // Heights and numbers say what the shade does.
  function tokens(turn) {
    if (!turn.tokens.length) return null;
    const sum = turn.tokens.reduce((all, each) => all + (each.log_prob ?? 0), 0);
    return el("details", { class: "strip-box", open: true },
      el("summary", {}, `${turn.tokens.length} tokens, log-probability ${number(sum)} in all`),
      el("div", { class: "strip", role: "list", "aria-label": "tokens with their log-probability" }, turn.tokens.map((each) => {
        const chance = each.log_prob === null ? 0 : Math.exp(each.log_prob);
        return el("span", { class: "token", role: "listitem", title: `token ${each.id}: log-probability ${number(each.log_prob)}, probability ${number(chance)}` },
          el("span", { class: "level", "aria-hidden": "true" },
            el("span", { style: { height: `${Math.max(4, chance * 100)}%` } })),
          el("span", { class: "piece" }, each.text === null ? `#${each.id}` : each.text.trim() === "" ? "␠" : text(each.text)),
          el("span", { class: "value" }, each.log_prob === null ? "–" : each.log_prob.toFixed(2)));
      })));
  }

  // One row per layer, one cell per slot; numbers stand in the titles and at the end of each row. The
  // scale is that of the whole conversation, so that turns compare.
  function heat(turn, most) {
    if (!turn.memory_change) return null;
    const of = (slots) => slots.reduce((all, each) => all + (each ?? 0), 0) / slots.length;
    const rows = turn.memory_change.map((slots, layer) => {
      const place = slots.indexOf(Math.max(...slots));
      const said = `mean ${of(slots).toFixed(2)}, most ${number(slots[place])} in slot ${place}`;
      return [el("span", { class: "soft" }, `layer ${layer}`),
        el("span", { class: "slots", role: "img", "aria-label": `layer ${layer}: ${said}` }, slots.map((each, slot) =>
          el("span", { "data-value": each, title: `layer ${layer}, slot ${slot}: ${number(each)}`,
            style: { backgroundColor: `rgba(var(--heat), ${Math.min(1, (each ?? 0) / most).toFixed(3)})` } }))),
        el("span", { class: "soft number" }, said)];
    });
    return el("details", { open: true },
      el("summary", {}, `Memory changed by ${number(of(turn.memory_change.map(of)))} of its norm in this turn's write`),
      el("div", { class: "changes", "data-heat": turn.number }, rows,
        el("span"), el("span", { class: "soft ramp" }, "0", el("span", { class: "scale" }), number(most)), el("span")));
  }

  function turnOf(turn, most) {
    const name = turn.number === 0 ? "opening" : `turn ${turn.number}`;
    return el("article", { class: "card turn", "data-turn": turn.number, id: `turn-${turn.number}` },
      el("h3", {}, name, " ", el("span", { class: "chip" }, turn.role),
        turn.failure ? el("span", { class: "chip bad" }, "failed") : null,
        turn.teacher_forced ? el("span", { class: "chip" }, "memory written with the reference") : null),
      line(turn.number === 0 ? "told" : "query", marked(turn.query)),
      turn.thought ? line("thought", text(turn.thought)) : null,
      line("answer", marked(turn.answer)),
      turn.reference.length ? line("reference", marked(turn.reference)) : null,
      turn.facts.length ? line("facts", el("ul", { class: "facts" }, turn.facts.map(fact))) : null,
      turn.wrong.length ? line("wrong", el("ul", { class: "facts" }, turn.wrong.map((value) =>
        el("li", { "data-fact": value, "data-state": "wrong" }, el("mark", { class: "wrong" },
          el("span", { class: "sign", "aria-hidden": "true" }, "≠"), text(value)),
        " named, and not asked for")))) : null,
      turn.failure ? line("failure", text(turn.failure)) : null,
      turn.memory ? line("memory written", text(turn.memory.text || "(nothing)"),
        turn.memory.cut ? el("span", { class: "chip bad" }, "cut at the budget") : null) : null,
      rewards(turn), tokens(turn), heat(turn, most));
  }

  function facts(one) {
    const stale = one.staleness === null ? "not known" : `${one.staleness} (weights ${one.weights_version}, trained into ${one.trained_version})`;
    const pairs = [
      ["outcome", [one.status, one.outcome, one.reason].filter(Boolean).join(" · ")],
      ["curriculum step", one.step || "none"], ["strategy", one.strategy],
      ["iteration", `${one.iteration} of stage ${one.stage}${one.attempt ? `, attempt ${one.attempt + 1}` : ""}`],
      ["weights version", number(one.weights_version)], ["staleness in updates", stale],
      ["worker", one.worker || "not recorded"], ["backend", one.backend || "not recorded"],
      ["environment", one.environment], ["seed", one.seed],
      ["memory at the start", one.carried_memory ? "carried over from an earlier episode" : "fresh, from the seed"],
      ["memory at the end", one.memory_hash || "not recorded"],
    ];
    return el("dl", { class: "pairs" }, pairs.map(([name, value]) => [el("dt", {}, name), el("dd", {}, text(String(value)))]));
  }

  function key() {
    return el("p", { class: "key small" }, Object.entries(MARKS).filter(([name]) => name !== "asked").map(([name, [sign, meaning]]) =>
      el("span", {}, el("mark", { class: name }, el("span", { class: "sign" }, sign), meaning), " ")),
    el("mark", { class: "missed" }, el("span", { class: "sign" }, "✗"), "missed"));
  }

  function show(one) {
    const most = Math.max(1e-9, ...one.turns.flatMap((turn) => turn.memory_change || []).flat());
    return [
      el("h2", { tabindex: "-1", id: "episode" }, "Episode ", text(one.id)),
      el("p", { class: "replay" }, el("code", { id: "replay" }, text(one.replay)), " ", frame.copyButton(one.replay),
        el("span", { class: "soft small" }, " plays it again and compares, where a checkpoint with its weights is kept")),
      facts(one), key(),
      el("p", { class: "soft small" }, one.memory_recorded
        ? "Memory: norm of each slot's change over its norm before, by layer; 0 is kept, about 1 is replaced. Of more than 64 slots, means of 64 groups of neighbours."
        : "Change of memory by layer and slot: not recorded for this episode. Its memory has no slots, or it is of an earlier version."),
      one.turns.map((turn) => turnOf(turn, most)),
      one.truncated ? el("p", { class: "note" }, "The conversation was cut off here.") : null,
    ];
  }

  return { show };
})();

// A cell of a heat map: the number stands in it, so the shade is not needed.
view.heatCell = (share, label, title) => {
  const strength = Math.max(0, Math.min(1, share));
  return frame.el("td", { class: `cell${strength > 0.55 ? " strong" : ""}`, title,
    style: { backgroundColor: `rgba(${frame.colour("heat")}, ${(strength * 0.95).toFixed(3)})` } }, label);
};
