// Where a page's data come from: the server that it was opened from, or the file that it lies in.
"use strict";

// Sections of the page on runs, by name, `runs`: what the server said of each, and sentences on
// files of episodes of one that cannot be read.
const view = {
  runs: [],
  unreadable: (run) => (view.runs[run]?.problems || []).filter((each) => each.startsWith("episodes/")),
};

const source = (() => {
  const held = document.getElementById("data");
  const data = held ? JSON.parse(held.textContent) : null;

  async function ask(path, words = {}) {
    if (data) return data[path];
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(words)) {
      for (const each of Array.isArray(value) ? value : [value]) {
        if (each !== "" && each !== null && each !== undefined && each !== false) query.append(name, each);
      }
    }
    const answer = await fetch(`api/${path}?${query}`);
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error);
    return found;
  }

  // What the file holds of an episode list is filtered here as the server does it.
  function matching(list, words) {
    const wanted = (name) => words[name] !== undefined && words[name] !== "" && words[name] !== false;
    let found = list.episodes.filter((one) =>
      ["step", "strategy", "worker"].every((name) => !wanted(name) || one[name] === words[name])
      && (!wanted("failed") || one.failed)
      && (!wanted("distance") || one.distances.includes(Number(words.distance)))
      && (!wanted("reward_from") || (one.reward !== null && one.reward >= Number(words.reward_from)))
      && (!wanted("reward_to") || (one.reward !== null && one.reward <= Number(words.reward_to)))
      && (!wanted("text") || one.id === words.text || one.texts.includes(words.text.toLowerCase())));
    if (words.order === "lowest" || words.order === "highest") {
      const sign = words.order === "lowest" ? 1 : -1;
      found = found.filter((one) => one.reward !== null).sort((a, b) => sign * (a.reward - b.reward));
    }
    const start = Number(words.start || 0);
    return { ...list, matching: found.length, episodes: found.slice(start, start + 100) };
  }

  return {
    whole: data !== null,
    runs: () => ask("runs"),
    metrics: () => ask("metrics"),
    series: async (names) => {
      const found = await ask("series", { name: names });
      return data ? Object.fromEntries(names.map((name) => [name, found[name] || []])) : found;
    },
    episodes: async (run, words) =>
      data ? matching(data.episodes[run], words) : ask("episodes", { run, ...words }),
    episode: async (run, id) => {
      if (!data) return ask("episode", { run, id });
      const found = data.episode[run][id];
      if (!found) throw new Error(`episode ${id} is not in this report; engram view has all of them`);
      return found;
    },
    memory: async (run) => (data ? data.memory[run] : ask("memory", { run })),
    waits: async (run) => (data ? data.waits[run] : ask("waits", { run })),
    state: async (run) => (data ? data.state[run] : ask("state", { run })),
    log: async (run, name) => (data ? data.log[run][name] : ask("log", { run, name })),
    // Calls back with the state of each run whenever one changed; told(false) while nobody answers.
    follow: (changed, told) => {
      if (data) return;
      const events = new EventSource("api/events");
      events.addEventListener("change", (event) => changed(JSON.parse(event.data)));
      events.onopen = () => told(true);
      events.onerror = () => told(false);
    },
  };
})();
