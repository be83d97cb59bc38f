// The stage of an edit: live preview, the result over what was before, its files, and the session's results. props.value
// is {state, note, step, steps, preview, size, picture: {id, after, before, size, alt, seed, files}}, of which only the
// newest picture is sent.
const root = element.querySelector(".dh-stage");
const find = (selector) => root.querySelector(selector);
const KEPT = 24;
const frame = find(".dh-frame"), after = find(".dh-after"), before = find(".dh-before"), preview = find(".dh-preview");
const split = find(".dh-split"), shelf = find(".dh-shelf");
const gallery = [];
let current = null;

function shape(size) {
  if (size) frame.style.aspectRatio = `${Math.max(0.75, Math.min(3, size[0] / size[1]))}`;
}

function show(picture) {
  current = picture;
  root.dataset.seed = picture.seed;
  shape(picture.size);
  after.src = picture.after;
  after.alt = picture.alt;
  after.hidden = false;
  const pair = Boolean(picture.before);
  if (pair) { before.src = picture.before; before.alt = "The picture before the edit"; }
  for (const part of [before, split, find(".dh-handle"), find(".dh-tag-before"), find(".dh-tag-after")]) part.hidden = !pair;
  slide();
  const flip = button("Flip", () => { split.value = split.value > 50 ? 0 : 100; slide(); });
  const take = button("Edit this further", () => trigger("take", { data: picture.after }));
  const links = picture.files.map(({ name, label, href }) => made("a", { className: "dh-small", href, download: name, text: label }));
  find(".dh-actions").replaceChildren(...(pair ? [flip] : []), take, ...links);
  for (const thumb of shelf.children) thumb.setAttribute("aria-pressed", thumb.dataset.id === picture.id);
}

function button(text, use) {
  const chip = made("button", { type: "button", className: "dh-small", text });
  chip.addEventListener("click", use);
  return chip;
}

function slide() {
  frame.style.setProperty("--split", `${split.value}%`);
}

function keep(picture, note) {
  if (gallery.some((other) => other.id === picture.id)) return;
  gallery.unshift(picture);
  const thumb = made("button", { type: "button", "data-id": picture.id, "aria-label": `Show again: ${picture.alt}`, title: picture.alt }, made("img", { src: picture.after, alt: "" }));
  thumb.addEventListener("click", () => { show(picture); report(root, { state: "done", note }); });
  shelf.prepend(thumb);
  while (gallery.length > KEPT) { gallery.pop(); shelf.lastChild.remove(); }
}

function update() {
  const value = props.value || {};
  if (value.picture) { keep(value.picture, value.note); show(value.picture); }
  report(root, value);
  const busy = value.state === "running" || value.state === "waiting";
  preview.hidden = !(busy && value.preview);
  if (!preview.hidden) { preview.src = value.preview; preview.alt = "The picture as it is being painted"; shape(value.size); }
  else if (current) shape(current.size);
  find(".dh-empty").hidden = Boolean(current) || !preview.hidden;
}

split.addEventListener("input", slide);
watch("value", update);
update();
// Names of the events that this component has: 'take'
