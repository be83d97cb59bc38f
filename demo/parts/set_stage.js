// The stage of a set: live preview, the whole picture, its panels, and the session's gallery. props.value is
// {state, note, step, steps, preview, size, picture: {id, whole, size, panels: [{src, place, name, given}], alt,
// name, note}}, of which only the newest picture is sent.
const root = element.querySelector(".dh-stage");
const find = (selector) => root.querySelector(selector);
const LIMIT = 20 * 1024 * 1024, KEPT = 24;
const whole = find(".dh-after"), preview = find(".dh-preview"), shelf = find(".dh-shelf");
const file = find('input[type="file"]'), frame = find(".dh-frame");
const gallery = [];
let current = null;

function shape(size) {
  if (size) frame.style.aspectRatio = `${Math.max(1, size[0] / size[1])}`;
}

function show(picture) {
  current = picture;
  whole.src = picture.whole;
  whole.alt = picture.alt;
  whole.hidden = false;
  shape(picture.size);
  find(".dh-cells").replaceChildren(...picture.panels.map(cell));
  const link = find('a[data-do="save"]');
  link.href = picture.whole;
  link.download = picture.name;
  link.hidden = false;
  for (const thumb of shelf.children) thumb.setAttribute("aria-pressed", thumb.dataset.id === picture.id);
}

function cell(panel, number) {
  const place = panel.place.toLowerCase();
  const link = made("a", { className: "dh-link", href: panel.src, download: panel.name, text: "Save", "aria-label": `Save panel ${place}` });
  const keep = made("button", { type: "button", className: "dh-link", text: "Keep", title: "Keep this panel, and draw the others again", "aria-label": `Keep panel ${place}` });
  keep.addEventListener("click", () => trigger("keep", { number, data: panel.src }));
  const parts = panel.given ? [made("span", { className: "dh-kept", text: "kept" }), link] : [keep, link];
  return made("figure", {}, made("img", { src: panel.src, alt: `Panel ${place}` }), made("figcaption", {}, made("span", { text: panel.place }), ...parts));
}

function keep(picture) {
  if (gallery.some((other) => other.id === picture.id)) return;
  gallery.unshift(picture);
  const thumb = made("button", { type: "button", "data-id": picture.id, "aria-label": `Show again: ${picture.alt}`, title: picture.alt }, made("img", { src: picture.whole, alt: "" }));
  thumb.addEventListener("click", () => trigger("open", { id: picture.id, data: picture.whole }));
  shelf.prepend(thumb);
  while (gallery.length > KEPT) { gallery.pop(); shelf.lastChild.remove(); }
}

function update() {
  const value = props.value || {};
  if (value.picture) { keep(value.picture); show(value.picture); }
  report(root, value);
  const busy = value.state === "running" || value.state === "waiting";
  preview.hidden = !(busy && value.preview);
  if (!preview.hidden) { preview.src = value.preview; preview.alt = "The set as it is being drawn"; shape(value.size); }
  find(".dh-empty").hidden = Boolean(current) || !preview.hidden;
}

root.addEventListener("click", (event) => {
  if (event.target.closest("[data-do]")?.dataset.do === "open") file.click();
});
file.addEventListener("change", () => { open(file.files[0]); file.value = ""; });
dropping(frame, (data) => open(data.files[0]));

async function open(given) {
  if (!given) return;
  const refuse = (note) => report(root, { state: "error", note });
  if (given.size > LIMIT) return refuse("This file is larger than 20 MB; sets of this page are not.");
  if (!/\.png$/i.test(given.name)) return refuse("Only PNG files keep their settings; this is another kind.");
  trigger("open", { data: await encoded(given) });
}

watch("value", update);
update();
// Names of the events that this component has: 'open', 'keep'
