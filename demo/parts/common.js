// What the parts share; it stands before the script of each.
const EMBED = 32768;

// The bytes of a file as base64.
async function encoded(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let text = "";
  for (let i = 0; i < bytes.length; i += EMBED) text += String.fromCharCode(...bytes.subarray(i, i + EMBED));
  return btoa(text);
}

// Files that are dropped on a place are used; meanwhile it says so by its class.
function dropping(place, use) {
  let depth = 0;
  const files = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
  place.addEventListener("dragenter", (event) => { if (files(event)) { depth++; place.classList.add("dh-over"); event.preventDefault(); } });
  place.addEventListener("dragover", (event) => { if (files(event)) event.preventDefault(); });
  place.addEventListener("dragleave", () => { if (depth && !--depth) place.classList.remove("dh-over"); });
  place.addEventListener("drop", (event) => {
    depth = 0;
    place.classList.remove("dh-over");
    if (!files(event)) return;
    event.preventDefault();
    event.stopPropagation();
    use(event.dataTransfer);
  });
}

// State, note and progress bar of a part that shows a job; on a phone it comes into sight when the job begins.
function report(root, value) {
  const busy = (state) => state === "running" || state === "waiting";
  const begins = busy(value.state) && !busy(root.dataset.state);
  root.dataset.state = value.state || "empty";
  if (begins && matchMedia("(max-width: 640px)").matches) root.scrollIntoView({ block: "nearest" });
  root.querySelector(".dh-note").textContent = value.note || "";
  const share = value.steps ? Math.round((100 * value.step) / value.steps) : 0;
  const bar = root.querySelector(".dh-progress");
  bar.setAttribute("aria-valuenow", share);
  bar.firstElementChild.style.width = `${share}%`;
}

// An element with a class, attributes and children.
function made(name, options = {}, ...children) {
  const { className, text, ...attributes } = options;
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) if (value !== undefined) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// A button of a layout, with its panels as a small picture.
function layoutChip({ rows, columns }, chosen, use) {
  const icon = made("span", { className: "dh-mini", style: `--columns: ${columns}`, "aria-hidden": true });
  for (let n = 0; n < rows * columns; n++) icon.append(made("i"));
  const words = rows === 1 ? `${columns} side by side` : columns === 1 ? `${rows} one below the other` : `${rows} by ${columns}`;
  const on = rows === chosen[0] && columns === chosen[1];
  const chip = made("button", { type: "button", className: "dh-chip dh-layout", "aria-pressed": on, "aria-label": words, title: words }, icon);
  chip.addEventListener("click", use);
  return chip;
}

// The words of a part about what went wrong.
function tellProblem(root, state, text) {
  state.problem = text || "";
  const place = root.querySelector(".dh-problem");
  place.textContent = state.problem;
  place.hidden = !state.problem;
}

// Between a part's state and props.value. What the server sends counts once, by its stamp, and only where it says
// something: the rest stays as the visitor has it. `take` gets what is no part of the state, and shows all of it.
function kept(props, state, take) {
  let seen = null;
  const commit = () => { props.value = { ...state, stamp: seen }; };
  const update = () => {
    const value = props.value || {};
    if (!value.stamp || value.stamp === seen) return;
    seen = value.stamp;
    for (const name of Object.keys(state)) if (name in value) state[name] = value[name];
    take(value);
    commit();
    setTimeout(commit); // again, as what is set while Gradio sets it is lost
  };
  return { commit, update };
}
