// What a search shows: props.value is {state, note, step, steps, pictures: [{src, heads}], sheet, told, search}.
const root = element.querySelector(".dh-board");
const find = (selector) => root.querySelector(selector);

function tile({ src, heads }) {
  return made("figure", {}, made("img", { src, alt: `A picture with ${heads}` }), made("figcaption", { text: heads }));
}

function update() {
  const value = props.value || {};
  if (value.search) try { localStorage.setItem("dit-heads-search", value.search); } catch { /* a private window */ }
  report(root, value);
  find(".dh-contact").replaceChildren(...(value.sheet ? [] : value.pictures || []).map(tile));
  const sheet = find(".dh-sheet");
  sheet.hidden = !value.sheet;
  if (value.sheet) { sheet.src = value.sheet; sheet.alt = value.told || "Pictures without and with the heads"; }
}

watch("value", update);
update();
