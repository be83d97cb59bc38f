// What a search shows: props.value is {state, note, step, steps, pictures: [{src, heads}], sheet, told, search}.
const root = element.querySelector(".dh-board");
const find = (selector) => root.querySelector(selector);

function tile({ src, heads }) {
  const made = document.createElement("figure"), image = document.createElement("img");
  const name = document.createElement("figcaption");
  image.src = src;
  image.alt = `A picture with ${heads}`;
  name.textContent = heads;
  made.append(image, name);
  return made;
}

function update() {
  const value = props.value || {};
  if (value.search) try { localStorage.setItem("dit-heads-search", value.search); } catch { /* a private window */ }
  root.dataset.state = value.state || "empty";
  find(".dh-note").textContent = value.note || "";
  const share = value.steps ? Math.round((100 * value.step) / value.steps) : 0;
  const bar = find(".dh-progress");
  bar.setAttribute("aria-valuenow", share);
  bar.firstElementChild.style.width = `${share}%`;
  find(".dh-contact").replaceChildren(...(value.sheet ? [] : value.pictures || []).map(tile));
  const sheet = find(".dh-sheet");
  sheet.hidden = !value.sheet;
  if (value.sheet) { sheet.src = value.sheet; sheet.alt = value.told || "Pictures without and with the heads"; }
}

watch("value", update);
update();
