// The stage of an answer: live preview, the answer on its picture, its legend, depth as points, files. props.value is
// {state, note, step, steps, preview, size, answer: {told, size, shown, picture, behind, legend, scale, cloud, files}}.
const root = element.querySelector(".dh-stage");
const find = (selector) => root.querySelector(selector);
const frame = find(".dh-frame"), image = find(".dh-after"), preview = find(".dh-preview"), canvas = find(".dh-cloud");
const cloud = pointCloud(canvas);
let current = null, view = "shown";

function shape(size) {
  if (size) frame.style.aspectRatio = `${Math.max(1, Math.min(3, size[0] / size[1]))}`;
}

function show(answer) {
  current = answer;
  view = "shown";
  shape(answer.size);
  find(".dh-told").textContent = answer.told;
  find(".dh-told").hidden = false;
  find(".dh-parts").replaceChildren(...answer.legend.map(line));
  find(".dh-parts").hidden = !answer.legend.length;
  metres(answer.scale);
  if (answer.cloud) cloud.show(answer.cloud);
  find(".dh-actions").replaceChildren(...answer.files.map(({ name, label, href }) => made("a", { className: "dh-small", href, download: name, text: label })));
  look();
}

// A class, object or answer: its colour and value, or its share as a bar.
function line({ name, value, colour, share }) {
  const mark = made("i", { className: share === undefined ? "dh-swatch" : "dh-bar", "aria-hidden": true });
  if (share === undefined) mark.style.background = colour;
  else mark.append(made("b", { style: `width: ${100 * share}%` }));
  return made("li", {}, ...(share === undefined ? [mark, made("span", { text: name })] : [made("span", { text: name }), mark]), made("span", { className: "dh-value", text: value }));
}

function metres(scale) {
  find(".dh-metres").hidden = !scale;
  if (!scale) return;
  find(".dh-metres > i").style.background = `linear-gradient(90deg, ${scale.stops.join(", ")})`;
  find(".dh-metres .dh-axis").replaceChildren(...scale.ticks.map((text) => made("span", { text })));
}

// --- what is shown: the answer, its points, the picture, or what stands behind the answer ---

function views() {
  const more = current.cloud ? [["cloud", "In 3-D"]] : [];
  const behind = current.behind ? [["behind", current.behind.label]] : [];
  return [["shown", "Answer"], ...more, ["picture", "Picture"], ...behind];
}

function look() {
  find(".dh-views").replaceChildren(...views().map(([name, text]) => {
    const chip = made("button", { type: "button", className: "dh-chip", "aria-pressed": name === view, text });
    chip.addEventListener("click", () => { view = name; look(); find('.dh-views [aria-pressed="true"]').focus(); });
    return chip;
  }));
  canvas.hidden = view !== "cloud";
  image.hidden = view === "cloud";
  if (image.hidden) return;
  image.src = view === "behind" ? current.behind.src : current[view];
  image.alt = { shown: current.told, picture: "The picture that was asked about", behind: current.behind?.told }[view];
}

function update() {
  const value = props.value || {};
  report(root, value);
  const busy = value.state === "running" || value.state === "waiting";
  if (value.answer) show(value.answer);
  else if (busy) find(".dh-told").hidden = true;
  preview.hidden = !(busy && value.preview);
  if (!preview.hidden) { preview.src = value.preview; preview.alt = "The answer as it is being painted"; shape(value.size); }
  find(".dh-empty").hidden = Boolean(current) || !preview.hidden;
}

watch("value", update);
update();
