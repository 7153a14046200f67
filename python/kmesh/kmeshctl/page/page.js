"use strict";
// The page's only program. Whatever comes from the cluster is set as text, never as HTML.

const SIGNS = { n: "✓", o: "↻", x: "✕", c: "?", "?": "–", ".": "·" };
const WORDS = { n: "newest key", o: "older key", x: "not ready: nothing is sent", c: "cut off: no report", "?": "never reports", ".": "itself" };
const LARGEST_TABLE = 40; // nodes; above, the whole is a picture, and those with problems have the table
const MOST_ROWS = 100;
const MOST_PAIRS = 50;
const EVERY = 2000; // milliseconds

const by = (id) => document.getElementById(id);
const make = (tag, text, kind) => {
  const one = document.createElement(tag);
  if (text !== undefined) one.textContent = text;
  if (kind) one.className = kind;
  return one;
};
const style = (sign) => ({ "?": "f", ".": "self" })[sign] || sign;

function problems(state) {
  const lines = state.findings.map((one) => make("li", one));
  if (!lines.length) lines.push(make("li", state.notes.length ? "all that is known is as it should be" : "all is as it should be", "well"));
  by("problems").replaceChildren(...lines, ...state.notes.map((one) => make("li", one, "note")));
}

function progress(state) {
  by("progress-part").hidden = !state.progress;
  by("progress-text").textContent = state.progress;
  by("progress").value = state.share || 0;
}

function told(state, row, column) {
  const sign = state.matrix[row][column];
  return `${state.nodes[row].name} → ${state.nodes[column].name}: ${WORDS[sign]}`;
}

function table(state, rows, columns) {
  const grid = make("table");
  const head = grid.createTHead().insertRow();
  head.append(make("th"), ...columns.map((index) => make("th", state.nodes[index].name)));
  const body = grid.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    line.append(make("th", state.nodes[row].name));
    for (const column of columns) {
      const sign = state.matrix[row][column];
      const cell = make("span", SIGNS[sign], `cell ${style(sign)}`);
      cell.title = told(state, row, column);
      line.insertCell().append(cell);
    }
  }
  return grid;
}

function picture(state) {
  const count = state.nodes.length;
  const size = Math.max(1, Math.floor(600 / count));
  const least = 3; // pixels of a cell that is not well: fewer are not seen
  const canvas = make("canvas");
  canvas.width = canvas.height = count * size;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${count} by ${count} nodes; what is not well is listed below`);
  const paint = canvas.getContext("2d");
  const colours = getComputedStyle(document.documentElement);
  const colour = { ".": colours.getPropertyValue("--back") };
  for (const sign of "nox?c") colour[sign] = colours.getPropertyValue(`--${style(sign)}`);
  state.matrix.forEach((cells, row) => {
    for (let begin = 0; begin < count; ) { // neighbours of one colour at once: a quarter of a million cells are mostly alike
      let end = begin + 1;
      while (end < count && cells[end] === cells[begin]) end++;
      paint.fillStyle = colour[cells[begin]];
      paint.fillRect(begin * size, row * size, (end - begin) * size, size);
      begin = end;
    }
  });
  state.matrix.forEach((cells, row) => [...cells].forEach((sign, column) => {
    if ("n.".includes(sign)) return;
    paint.fillStyle = colour[sign];
    paint.fillRect(column * size, row * size, Math.max(size, least), Math.max(size, least));
  }));
  canvas.onmousemove = (event) => {
    const scale = canvas.width / canvas.clientWidth / size;
    const row = Math.floor(event.offsetY * scale), column = Math.floor(event.offsetX * scale);
    if (row >= 0 && row < count && column >= 0 && column < count) by("hover").textContent = told(state, row, column);
  };
  return canvas;
}

function apart(state) {
  const found = [];
  let more = 0;
  state.matrix.forEach((cells, row) => {
    const groups = {};
    [...cells].forEach((sign, column) => { if (!"n.".includes(sign)) (groups[sign] ||= []).push(state.nodes[column].name); });
    for (const [sign, names] of Object.entries(groups)) {
      if (found.length >= MOST_PAIRS) { more++; continue; }
      const shown = names.length === cells.length - 1 ? "all others" : names.slice(0, 5).join(", ") + (names.length > 5 ? ` and ${names.length - 5} more` : "");
      const line = make("li");
      line.append(make("span", SIGNS[sign], `cell ${style(sign)}`), ` ${state.nodes[row].name} → ${shown}: ${WORDS[sign]}`);
      found.push(line);
    }
  });
  if (more) found.push(make("li", `and ${more} more`));
  return found;
}

function matrix(state) {
  const all = state.nodes.map((_, index) => index);
  if (all.length <= LARGEST_TABLE) {
    by("matrix").replaceChildren(table(state, all, all));
    by("pairs").replaceChildren();
    return;
  }
  // Nodes with problems come first, in what the server gives.
  const ill = all.filter((row) => /[^n.]/.test(state.matrix[row])).slice(0, LARGEST_TABLE);
  const reached = new Set(ill);
  for (const row of ill) [...state.matrix[row]].forEach((sign, column) => { if ("xo".includes(sign)) reached.add(column); });
  by("matrix").replaceChildren(...(ill.length ? [table(state, ill, [...reached].slice(0, LARGEST_TABLE))] : []), picture(state));
  by("pairs").replaceChildren(...apart(state));
}

function drops(state) {
  const most = Math.max(1, ...state.drops);
  by("drops").replaceChildren(...state.drops.map((count, index) => {
    const bar = make("div", undefined, count ? "" : "none");
    bar.style.height = `${(100 * count) / most * 0.8}%`;
    bar.title = `${state.drops.length - index - 1} to ${state.drops.length - index} minutes ago: ${count}`;
    if (count) bar.append(make("span", String(count)));
    return bar;
  }));
  const named = Object.entries(state.dropsByNode).slice(0, 5).map(([name, count]) => `${name} ${count}`);
  by("drops-text").textContent = named.length ? `since this page's server began: ${named.join(", ")}` : `none in the last ${state.drops.length} minutes, or since this page's server began`;
}

function nodes(state) {
  const rows = state.nodes.slice(0, MOST_ROWS).map((node) => {
    const line = make("tr", undefined, node.ill ? "bad" : "");
    const ready = node.ready === null ? "unknown" : node.ready ? "✓ yes" : "✕ no";
    for (const text of [node.name, ready, node.spi, node.peers, node.replacement, node.drops, node.age]) line.append(make("td", text === null || text === "" ? "–" : String(text)));
    return line;
  });
  by("nodes").tBodies[0].replaceChildren(...rows);
  const more = state.nodes.length - rows.length;
  by("more-nodes").textContent = more > 0 ? `and ${more} more, with nothing to be said of them that is not above` : "";
}

let shown = "";
async function look() {
  const trouble = by("trouble");
  let words = "";
  try {
    const state = await (await fetch("state.json")).json();
    if (state.trouble) words = `${state.trouble}${state.ageSeconds === null ? "" : `; what stands here is ${Math.round(state.ageSeconds)} s old`}`;
    if (state.nodes) {
      by("summary").textContent = state.summary;
      const now = JSON.stringify([state.nodes, state.matrix, state.findings, state.notes, state.progress, state.share, state.drops]);
      if (now !== shown) {
        shown = now;
        for (const part of [problems, progress, matrix, drops, nodes]) part(state);
      }
      document.title = `${state.findings.length ? `(${state.findings.length}) ` : ""}Kmesh IPsec`;
    }
    document.body.dataset.state = state.nodes ? "shown" : "waiting";
  } catch (_) {
    words = "kmeshctl dashboard does not answer any more; start it again";
  }
  trouble.textContent = words;
  trouble.hidden = !words;
}

async function ask(event) {
  event.preventDefault();
  const answer = by("answer");
  const asked = new URLSearchParams({ one: by("one").value, other: by("other").value, namespace: by("namespace").value });
  let text;
  try {
    const found = await (await fetch(`explain.json?${asked}`)).json();
    text = found.error || found.text;
  } catch (_) {
    text = "kmeshctl dashboard does not answer any more; start it again";
  }
  answer.textContent = text;
  answer.hidden = false;
}

by("ask").addEventListener("submit", ask);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { shown = ""; });
const given = new URLSearchParams(location.hash.slice(1)); // a link may name two ends
if (given.get("one") && given.get("other")) {
  for (const name of ["one", "other", "namespace"]) by(name).value = given.get(name) || "";
  by("ask").requestSubmit();
}
look();
setInterval(look, EVERY);
