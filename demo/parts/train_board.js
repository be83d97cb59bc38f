// What a training shows: props.value is {state, note, step, steps, points: [[step, loss]], drawings: [{src, step}],
// run, file: {href, name}}. The id of the run stays in the browser, where a page that is loaded again finds it.
const root = element.querySelector(".dh-training");
const find = (selector) => root.querySelector(selector);

function update() {
  const value = props.value || {};
  if (value.run) try { localStorage.setItem("dit-heads-training", value.run); } catch { /* a private window */ }
  report(root, value);
  curve(value.points || [], value.steps || 1);
  find(".dh-drawn").replaceChildren(...(value.drawings || []).map(({ src, step }) =>
    made("figure", {}, made("img", { src, alt: `Drawn after ${step} steps` }), made("figcaption", { text: `after ${step} steps` }))));
  const link = find('[data-do="save"]');
  link.hidden = !value.file;
  if (value.file) { link.href = value.file.href; link.download = value.file.name; }
}

function curve(points, steps) {
  const place = find(".dh-curve");
  place.hidden = points.length < 2;
  if (place.hidden) return;
  const losses = points.map(([, loss]) => loss), low = Math.min(...losses), high = Math.max(...losses);
  const y = (loss) => 170 - (160 * (loss - low)) / (high - low || 1);
  find(".dh-loss").setAttribute("points", points.map(([step, loss]) => `${((600 * step) / steps).toFixed(1)},${y(loss).toFixed(1)}`).join(" "));
  const [last] = losses.slice(-1);
  find("svg").setAttribute("aria-label", `Loss from ${losses[0].toFixed(3)} to ${last.toFixed(3)} after ${points[points.length - 1][0]} steps`);
  find(".dh-low").textContent = `${losses[0].toFixed(3)} at first`;
  find(".dh-high").textContent = `now ${last.toFixed(3)}`;
}

watch("value", update);
update();
