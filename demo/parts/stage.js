// The stage: live preview, before/after, and the session's gallery. props.value is {state, note, step, steps,
// preview, picture: {id, after, before, alt, name, settings}}, of which only the newest picture is sent.
const root = element.querySelector(".dh-stage");
const find = (selector) => root.querySelector(selector);
const LIMIT = 20 * 1024 * 1024, KEPT = 24;
const after = find(".dh-after"), before = find(".dh-before"), preview = find(".dh-preview");
const split = find(".dh-split"), shelf = find(".dh-shelf"), file = find('input[type="file"]');
const gallery = [];
let current = null;

// --- the picture ---

function show(picture) {
  current = picture;
  after.src = picture.after;
  after.alt = picture.alt;
  const pair = Boolean(picture.before);
  if (pair) { before.src = picture.before; before.alt = `${picture.alt}, without head guidance`; }
  for (const part of [before, split, find(".dh-handle"), find(".dh-tag-before"), find(".dh-tag-after")]) part.hidden = !pair;
  find('[data-do="flip"]').hidden = !pair;
  after.hidden = false;
  const save = find('a[data-do="save"]');
  save.href = picture.after;
  save.download = picture.name;
  save.hidden = false;
  slide();
  for (const thumb of shelf.children) thumb.setAttribute("aria-pressed", thumb.dataset.id === picture.id);
}

function slide() {
  find(".dh-frame").style.setProperty("--split", `${split.value}%`);
}

function keep(picture) {
  if (gallery.some((other) => other.id === picture.id)) return;
  gallery.unshift(picture);
  const thumb = document.createElement("button");
  thumb.type = "button";
  thumb.dataset.id = picture.id;
  thumb.setAttribute("aria-label", `Show again: ${picture.alt}`);
  thumb.title = picture.alt;
  const image = document.createElement("img");
  image.src = picture.after;
  image.alt = "";
  thumb.append(image);
  thumb.addEventListener("click", () => {
    show(picture);
    state("done", picture.note);
    trigger("pick", { settings: picture.settings });
  });
  shelf.prepend(thumb);
  while (gallery.length > KEPT) { gallery.pop(); shelf.lastChild.remove(); }
}

// --- what the server says ---

const state = (name, note) => report(root, { state: name, note });

function update() {
  const value = props.value || {};
  if (value.picture) { keep(value.picture); show(value.picture); }
  const busy = value.state === "running" || value.state === "waiting";
  report(root, value);
  preview.hidden = !(busy && value.preview);
  if (!preview.hidden) { preview.src = value.preview; preview.alt = "The picture as it is being drawn"; }
  if (value.state !== "empty" || current) find(".dh-empty").hidden = Boolean(current) || !preview.hidden;
}

// --- what the visitor does ---

split.addEventListener("input", slide);
root.addEventListener("click", (event) => {
  const what = event.target.closest("[data-do]")?.dataset.do;
  if (what === "open") file.click();
  if (what === "flip") { split.value = split.value > 50 ? 0 : 100; slide(); }
});
file.addEventListener("change", () => { open(file.files[0]); file.value = ""; });

async function open(given) {
  if (!given) return;
  if (given.size > LIMIT) return state("error", "This file is larger than 20 MB; pictures of this page are not.");
  if (!/\.png$/i.test(given.name)) return state("error", "Only PNG files keep their settings; this is another kind.");
  trigger("open", { data: await encoded(given) });
}

dropping(find(".dh-frame"), (data) => open(data.files[0]));

// The quiet picture of an empty stage: a few heads among many.
const art = find(".dh-empty svg"), on = new Set(["1 4", "3 2", "3 8", "5 6", "6 10"]);
for (let b = 0; b < 8; b++) for (let h = 0; h < 12; h++) {
  const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
  dot.setAttribute("cx", 4 + 8 * h);
  dot.setAttribute("cy", 4 + 8 * b);
  dot.setAttribute("r", on.has(`${b} ${h}`) ? 3 : 1.6);
  if (on.has(`${b} ${h}`)) dot.setAttribute("class", "dh-on");
  art.append(dot);
}

watch("value", update);
update();
// Names of the events that this component has: 'pick', 'open'
