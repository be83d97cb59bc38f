// A picture, an instruction with the pictures of its names, and a mask. props.value is {picture, shows, instruction,
// references: [{name, src}], area, mask, examples: [{src, name}], problem}. The server sends a reference in `add`, and
// what it has found in `map`.
const root = element.querySelector(".dh-edit");
const find = (selector) => root.querySelector(selector);
const doing = (name) => find(`[data-do="${name}"]`);
const LIMIT = 20 * 1024 * 1024, MOST = 4, UNNAMED = "imagehere";
const state = { picture: "", shows: "", instruction: "", references: [], area: "whole", mask: "", examples: [], problem: "" };
const own = find(".dh-own"), canvas = find(".dh-mask"), words = find(".dh-area"), file = find('input[type="file"]');
const brush = maskBrush(canvas, find(".dh-brush"), masked);
let slot = "", lists = "";

const { commit, update } = kept(props, state, (value) => {
  if (value.add) state.references = [...state.references.filter(({ name }) => name !== value.add.name), value.add];
  if (value.map) found(value.map);
  build();
});
const problem = (text) => tellProblem(root, state, text);

function build() {
  if (own.getAttribute("src") !== state.picture) { if (state.picture) own.src = state.picture; else own.removeAttribute("src"); }
  own.alt = state.shows;
  find(".dh-easel").hidden = find(".dh-masking").hidden = doing("remove").hidden = !state.picture;
  find(".dh-source p").hidden = Boolean(state.picture);
  words.value = state.instruction;
  find(".dh-scenes").replaceChildren(...state.examples.map(({ src, name }, number) => {
    const scene = made("button", { type: "button", "aria-label": `Try: ${name}`, title: name }, made("img", { src, alt: "" }));
    scene.addEventListener("click", () => trigger("example", { number }));
    return scene;
  }));
  slots(true);
  area();
  problem(state.problem);
}

// --- the pictures of the instruction ---

// The names in angle brackets, each once; or <imagehere> by number, if there is no other.
function named() {
  const names = [...state.instruction.matchAll(/<([^<>\s]+)>/g)].map((match) => match[1]);
  return names.length && names.every((name) => name === UNNAMED) ? names.map((name, k) => `${name} ${k + 1}`) : [...new Set(names)];
}

const label = (name) => { const [word, number] = name.split(" "); return number ? `<${word}> number ${number}` : `<${word}>`; };

function slots(anew = false) {
  const inText = named(), loose = state.references.map(({ name }) => name).filter((name) => !inText.includes(name));
  const now = JSON.stringify([inText, loose]);
  if (!anew && now === lists) return;
  lists = now;
  find(".dh-panels").replaceChildren(...inText.map((name, k) => line(name, k >= MOST ? `At most ${MOST} pictures` : "")), ...loose.map((name) => line(name, "Not in the instruction any more")));
}

function line(name, trouble) {
  const given = state.references.find((each) => each.name === name)?.src;
  const well = made("button", { type: "button", className: "dh-well", "aria-label": given ? `Another picture for ${label(name)}` : `Give a picture for ${label(name)}` });
  well.append(given ? made("img", { src: given, alt: `Given: ${label(name)}` }) : made("span", { "aria-hidden": true, text: "+" }));
  well.addEventListener("click", () => choose(name));
  const head = made("div", { className: "dh-place" }, made("code", { text: label(name) }));
  if (given) {
    const out = made("button", { type: "button", className: "dh-link", text: "Remove", "aria-label": `Remove the picture for ${label(name)}` });
    out.addEventListener("click", () => { state.references = state.references.filter((each) => each.name !== name); slots(true); commit(); words.focus(); });
    head.append(out);
  }
  const told = trouble || (given ? "" : "It still needs its picture: drop one here, or choose it");
  const about = made("span", { className: trouble ? "dh-problem" : "dh-quiet", text: told });
  const whole = made("div", { className: "dh-panel", "data-slot": name }, well, made("div", { className: "dh-words" }, head, about));
  dropping(whole, (data) => give(name, data.files[0]));
  return whole;
}

function insert() {
  const taken = named();
  let name = "picture", number = 1;
  while (taken.includes(name)) name = `picture${++number}`;
  const [from, to] = document.activeElement === words || words.selectionEnd ? [words.selectionStart, words.selectionEnd] : [words.value.length, words.value.length];
  const gap = (side) => (side && !/\s/.test(side) ? " " : "");
  words.setRangeText(`${gap(words.value[from - 1])}<${name}>${gap(words.value[to])}`, from, to, "end");
  write();
  find(`[data-slot="${name}"] .dh-well`)?.focus();
}

function write() {
  state.instruction = words.value;
  slots();
  commit();
}

// --- the mask ---

function area() {
  const inside = state.area === "inside";
  for (const chip of root.querySelectorAll("[data-area]")) chip.setAttribute("aria-pressed", chip.dataset.area === state.area);
  find(".dh-tools").hidden = canvas.hidden = !inside;
  if (!inside) find(".dh-brush").hidden = true;
  tell();
}

function tell() {
  doing("undo").disabled = !brush.canUndo;
  find(".dh-reach").hidden = !brush.found;
  if (state.area !== "inside") return;
  const share = brush.covered();
  find(".dh-covered").textContent = share ? `The mask covers ${share < 0.01 ? "less than 1" : Math.round(100 * share)} % of the picture. The rest stays as it is.` : "Nothing is covered yet: paint over the picture, or find a mask.";
  canvas.setAttribute("aria-label", "Mask on the picture. Arrow keys move the brush, Space paints, Shift with an arrow paints a line.");
}

function masked() {
  state.mask = brush.uri();
  tell();
  commit();
}

own.addEventListener("load", () => {
  find(".dh-easel").style.setProperty("--ratio", own.naturalWidth / own.naturalHeight);
  brush.load(own.naturalWidth, own.naturalHeight);
  masked();
});

// A grey picture: how much each place would change.
async function found(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  const [w, h] = brush.sides;
  if (image.width !== w || image.height !== h) return problem("The picture has changed since; please find the mask again.");
  const plain = made("canvas", { width: w, height: h }).getContext("2d");
  plain.drawImage(image, 0, 0);
  const { data } = plain.getImageData(0, 0, w, h);
  brush.setMap(Uint8Array.from({ length: w * h }, (_, k) => data[4 * k]));
  state.area = "inside";
  area();
  masked();
}

for (const chip of root.querySelectorAll("[data-area]")) chip.addEventListener("click", () => { state.area = chip.dataset.area; area(); masked(); });
for (const chip of root.querySelectorAll("[data-tool]")) chip.addEventListener("click", () => tool(chip.dataset.tool));
function tool(name) {
  brush.tool = name;
  for (const chip of root.querySelectorAll("[data-tool]")) chip.setAttribute("aria-pressed", chip.dataset.tool === name);
}
function slide(selector, use) {
  const input = find(selector), output = input.nextElementSibling;
  const now = () => { use(input.value / 1); output.textContent = `${input.value} %`; };
  input.addEventListener("input", now);
  now();
}
slide(".dh-size", (share) => { brush.size = share; });
slide(".dh-threshold", (share) => { brush.reach = 1 - share / 100; });
find(".dh-threshold").addEventListener("change", masked);

// --- what the visitor does ---

words.addEventListener("input", write);
words.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  commit();
  trigger("paint", {});
});
file.addEventListener("change", () => { give(slot, file.files[0]); file.value = ""; });
dropping(find(".dh-source"), (data) => give("", data.files[0]));
function choose(name) { slot = name; file.click(); }

async function give(name, given) {
  if (!given) return;
  if (given.size > LIMIT) return problem("This picture is larger than 20 MB; please choose a smaller one.");
  problem("");
  commit();
  trigger("give", { slot: name, data: await encoded(given) });
}

function remove() {
  state.picture = state.mask = "";
  state.area = "whole";
  build();
  commit();
  doing("choose").focus();
}

const ACTIONS = {
  choose: () => choose(""), remove, insert, undo: () => brush.undo(), clear: () => brush.clear(), invert: () => brush.invert(),
  find: () => { problem(""); commit(); trigger("find", {}); },
};
root.addEventListener("click", (event) => ACTIONS[event.target.closest("[data-do]")?.dataset.do]?.());

tool("paint");
watch("value", update);
update();
// Names of the events that this component has: 'paint', 'find', 'give', 'example'
