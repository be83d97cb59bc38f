// The head map: blocks x heads to click and drag over. props.value is {text, heads, image_only, presets,
// scores, title}; text names the chosen heads, as the command line does, and is what the server reads.
const root = element.querySelector(".dh-map");
const find = (selector) => root.querySelector(selector);
const LIMIT = 256 * 1024;
const FORM = /^L(\d{1,3})(?:-(\d{1,3}))?(?:H(\d{1,3})(?:-(\d{1,3}))?)?(i?)$/;
let chosen = new Set(), cells = new Map(), scores = {}, facts = {};

const sections = () => [["", facts.heads || []], ["i", facts.image_only || []]].filter(([, n]) => n.some(Boolean));
const counts = (suffix) => (suffix ? facts.image_only : facts.heads) || [];

function parse(text) {
  const found = new Set();
  for (const word of text.split(/[,\s]+/).filter(Boolean)) {
    const match = FORM.exec(word);
    if (!match) throw `'${word.slice(0, 40)}' names no head. Write L3H2 (a head), L3 (a block) or L3H0-5 (a range).`;
    const [, b0, b1, h0, h1, suffix] = match;
    const of = counts(suffix);
    for (let b = +b0; b <= +(b1 ?? b0); b++) {
      if (!of[b]) throw `Block L${b}${suffix} is not in this model, which has L0 to L${counts("").length - 1}.`;
      const last = h0 === undefined ? of[b] - 1 : +(h1 ?? h0);
      if (last >= of[b]) throw `Block L${b} has heads up to L${b}H${of[b] - 1}.`;
      for (let h = h0 === undefined ? 0 : +h0; h <= last; h++) found.add(`L${b}H${h}${suffix}`);
    }
  }
  return found;
}

function written() {
  const words = [];
  for (const [suffix, of] of sections()) of.forEach((n, b) => {
    const on = [...Array(n).keys()].filter((h) => chosen.has(`L${b}H${h}${suffix}`));
    if (n && on.length === n) return words.push(`L${b}${suffix}`);
    for (let i = 0, j; i < on.length; i = j) {
      for (j = i + 1; on[j] === on[j - 1] + 1; j++);
      words.push(`L${b}H${on[i]}${j - i > 1 ? `-${on[j - 1]}` : ""}${suffix}`);
    }
  });
  return words.join(", ");
}

function problem(text) {
  const place = find(".dh-problem");
  place.textContent = text || "";
  place.hidden = !text;
  find(".dh-text").toggleAttribute("aria-invalid", Boolean(text));
}

function paint() {
  for (const [name, cell] of cells) cell.setAttribute("aria-selected", chosen.has(name));
  const n = chosen.size;
  find(".dh-count").textContent = n ? `${n} of ${cells.size}` : "none: no head guidance";
  for (const chip of root.querySelectorAll(".dh-chip")) chip.setAttribute("aria-pressed", same(chip.dataset.heads));
}

function same(text) {
  try { const other = parse(text); return other.size === chosen.size && [...other].every((h) => chosen.has(h)); }
  catch { return false; }
}

function commit(text) {
  text = text ?? written();
  find(".dh-text").value = text;
  problem("");
  paint();
  props.value = { ...props.value, text };
}

function take(text) {
  try { chosen = parse(text); commit(text.trim()); return true; }
  catch (message) { problem(message); return false; }
}

// --- drawing ---

function build() {
  facts = props.value || {};
  scores = facts.scores || {};
  cells = new Map();
  const all = Object.values(scores).map(Math.abs), most = Math.max(1e-12, ...all);
  const grids = find(".dh-grids");
  grids.replaceChildren(...sections().map(([suffix, of]) => grid(suffix, of, most)));
  find(".dh-presets").replaceChildren(...(facts.presets || []).map(chip));
  const legend = find(".dh-legend");
  legend.hidden = !all.length;
  legend.title = facts.title || "";
  find(".dh-low").textContent = all.length ? `\u2212${most.toPrecision(2)}` : "";
  find(".dh-high").textContent = all.length ? `+${most.toPrecision(2)} ${facts.title || ""}` : "";
  try { chosen = parse(facts.text || ""); problem(""); } catch (message) { chosen = new Set(); problem(message); }
  find(".dh-text").value = facts.text || "";
  paint();
}

function grid(suffix, of, most) {
  const across = of.length > 16, heads = Math.max(...of), place = document.createElement("div");
  place.className = "dh-grid";
  place.setAttribute("role", "grid");
  place.setAttribute("aria-multiselectable", "true");
  place.setAttribute("aria-label", suffix ? "Heads of the image-only attention" : "Heads, a block a row");
  place.style.setProperty("--columns", across ? of.length : heads);
  place.classList.toggle("dh-across", across);
  of.forEach((n, b) => {
    const row = document.createElement("div");
    row.className = "dh-row";
    row.setAttribute("role", "row");
    if (!n) { row.hidden = true; place.append(row); return; }
    const name = document.createElement("button");
    name.type = "button";
    name.className = "dh-block";
    name.textContent = across && b % 8 ? "" : `L${b}${suffix}`;
    name.setAttribute("aria-label", `Block L${b}${suffix}, all heads`);
    name.dataset.block = `L${b}${suffix}`;
    name.tabIndex = -1;
    const head = document.createElement("span");
    head.setAttribute("role", "rowheader");
    head.append(name);
    row.append(head);
    for (let h = 0; h < n; h++) row.append(cell(`L${b}H${h}${suffix}`, b, h, most));
    place.append(row);
  });
  const first = place.querySelector(".dh-cell");
  if (first) first.tabIndex = 0;
  return place;
}

function cell(name, block, head, most) {
  const made = document.createElement("div");
  made.className = "dh-cell";
  made.setAttribute("role", "gridcell");
  made.setAttribute("aria-label", label(name));
  made.dataset.head = name;
  made.dataset.at = `${block} ${head}`;
  made.tabIndex = -1;
  if (name in scores) {
    made.classList.add(scores[name] < 0 ? "dh-minus" : "dh-plus");
    made.style.setProperty("--share", `${Math.round(100 * Math.min(1, Math.abs(scores[name]) / most))}%`);
  }
  cells.set(name, made);
  return made;
}

const label = (name) => name in scores ? `${name}, ${signed(scores[name])}` : name;
const signed = (x) => `${x < 0 ? "\u2212" : "+"}${Math.abs(x).toPrecision(3)}`;

function chip(preset) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "dh-chip";
  made.textContent = preset.name;
  made.title = [preset.heads, preset.note].filter(Boolean).join(": ");
  made.dataset.heads = preset.heads;
  made.addEventListener("click", () => {
    if (take(preset.heads)) trigger("preset", { scale: preset.scale, softness: preset.softness });
  });
  return made;
}

// --- pointer and keyboard ---

let brush = null;
const under = (event) => document.elementFromPoint(event.clientX, event.clientY)?.closest?.(".dh-cell");

function dab(at) {
  if (!at || !root.contains(at)) return;
  brush ? chosen.add(at.dataset.head) : chosen.delete(at.dataset.head);
  at.setAttribute("aria-selected", brush);
  find(".dh-count").textContent = `${chosen.size} of ${cells.size}`;
}

const grids = find(".dh-grids");
grids.addEventListener("pointerdown", (event) => {
  const at = event.target.closest(".dh-cell");
  if (!at || event.button) return;
  event.preventDefault();
  brush = !chosen.has(at.dataset.head);
  grids.setPointerCapture(event.pointerId);
  focusOn(at);
  dab(at);
});
grids.addEventListener("pointermove", (event) => {
  const at = under(event);
  hover(at, event);
  if (brush !== null) dab(at);
});
for (const end of ["pointerup", "pointercancel"]) grids.addEventListener(end, () => {
  if (brush === null) return;
  brush = null;
  commit();
});
grids.addEventListener("pointerleave", () => hover(null));
grids.addEventListener("click", (event) => {
  const block = event.target.closest(".dh-block")?.dataset.block;
  if (!block) return;
  const all = [...parse(block)], on = !all.every((head) => chosen.has(head));
  for (const head of all) on ? chosen.add(head) : chosen.delete(head);
  commit();
});
grids.addEventListener("keydown", (event) => {
  const at = event.target.closest(".dh-cell");
  if (!at) return;
  const [block, head] = at.dataset.at.split(" ").map(Number);
  const across = at.closest(".dh-grid").classList.contains("dh-across");
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const suffix = at.dataset.head.endsWith("i") ? "i" : "";
  if (event.key === " " || event.key === "Enter") {
    chosen.has(at.dataset.head) ? chosen.delete(at.dataset.head) : chosen.add(at.dataset.head);
    commit();
  } else if (event.key in moves) {
    const [row, column] = moves[event.key];
    const [db, dh] = across ? [column, row] : [row, column];
    const next = cells.get(`L${block + db}H${head + dh}${suffix}`);
    if (next) focusOn(next);
  } else return;
  event.preventDefault();
});

function focusOn(at) {
  for (const each of at.closest(".dh-grid").querySelectorAll('.dh-cell[tabindex="0"]')) each.tabIndex = -1;
  at.tabIndex = 0;
  at.focus({ preventScroll: true });
  hover(at);
}

function hover(at, event) {
  const tip = find(".dh-hover");
  tip.classList.toggle("dh-shown", Boolean(at));
  if (!at) return;
  const box = root.getBoundingClientRect(), of = at.getBoundingClientRect();
  tip.textContent = label(at.dataset.head);
  tip.style.left = `${Math.min(Math.max(of.left + of.width / 2 - box.left, 48), box.width - 48)}px`;
  tip.style.top = `${of.top - box.top}px`;
}

// --- text and files ---

const text = find(".dh-text"), file = find('input[type="file"]');
text.addEventListener("change", () => take(text.value));
text.addEventListener("keydown", (event) => { if (event.key === "Enter") take(text.value); });
root.addEventListener("click", (event) => {
  const what = event.target.closest("[data-do]")?.dataset.do;
  if (what === "clear") { chosen = new Set(); commit(); }
  if (what === "open") file.click();
  if (what === "save") save();
});

function save() {
  const heads = written().split(", ").filter(Boolean);
  if (!heads.length) return problem("Choose a head first: there is none to save.");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify({ heads }, null, 1) + "\n"], { type: "application/json" }));
  link.download = "heads.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

file.addEventListener("change", async () => {
  const [given] = file.files;
  file.value = "";
  if (!given) return;
  if (given.size > LIMIT) return problem("This file is too large for a head set.");
  let read;
  try { read = JSON.parse(await given.text()); } catch { return problem("This file is not JSON."); }
  if (!Array.isArray(read?.heads) || !read.heads.every((head) => typeof head === "string"))
    return problem('A head set is JSON such as {"heads": ["L0H5", "L2"]}; this file holds something else.');
  const gains = gainsOf(read);
  if (!take(read.heads.join(", ")) || !gains) return;
  props.value = { ...props.value, scores: gains, title: "gain of the search" };
  build();
});

// The gains of a search's first round, as `dit-heads hunt` writes them.
function gainsOf(read) {
  const round = Array.isArray(read.scores) ? read.scores[0] : null;
  if (!round || typeof round !== "object" || typeof read.unguided !== "number") return null;
  const gains = Object.entries(round).filter(([, score]) => Number.isFinite(score));
  return gains.length ? Object.fromEntries(gains.map(([head, score]) => [head, score - read.unguided])) : null;
}

watch("value", build);
build();
// Names of the events that this component has: 'preset'
