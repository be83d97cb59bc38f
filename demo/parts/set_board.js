// A joint caption panel by panel, and the panels that are given. props.value is {layouts: [{rows, columns,
// places}], layout, summary, texts, given: {number: picture}, examples, problem}. The server sends new
// pictures in `add`.
const root = element.querySelector(".dh-set");
const find = (selector) => root.querySelector(selector);
const LIMIT = 20 * 1024 * 1024;
const state = { layouts: [], layout: [1, 2], summary: "", texts: [], given: {}, examples: [], problem: "" };

const places = () => state.layouts.find(({ rows, columns }) => rows === state.layout[0] && columns === state.layout[1])?.places || [];

const { commit, update } = kept(props, state, (value) => {
  for (const [number, picture] of Object.entries(value.add || {})) state.given = { ...state.given, [number]: picture };
  if (!places().length && state.layouts.length) state.layout = [state.layouts[0].rows, state.layouts[0].columns];
  build();
});
const problem = (text) => tellProblem(root, state, text);

// --- drawing ---

function build() {
  const label = state.examples.length ? [made("span", { className: "dh-count", text: "Try" })] : [];
  find(".dh-tries").replaceChildren(...label, ...state.examples.map((name, number) => {
    const chip = made("button", { type: "button", className: "dh-small", text: name });
    chip.addEventListener("click", () => trigger("example", { number }));
    return chip;
  }));
  find(".dh-layouts").replaceChildren(...state.layouts.map((layout) => layoutChip(layout, state.layout, () => {
    state.layout = [layout.rows, layout.columns];
    build();
    commit();
    root.querySelector('.dh-layout[aria-pressed="true"]').focus();
  })));
  find('[data-text="summary"]').value = state.summary;
  find(".dh-panels").replaceChildren(...places().map(panel));
  problem(state.problem);
}

function panel(place, number) {
  const given = state.given[number];
  const area = made("textarea", { className: "dh-area", rows: 2, maxlength: 1000, "data-text": number, placeholder: "What this panel shows", "aria-label": `Panel ${place.toLowerCase()}` });
  area.value = state.texts[number] || "";
  const well = made("button", { type: "button", className: "dh-well", "aria-label": given ? `Another picture for panel ${place.toLowerCase()}` : `Give a picture for panel ${place.toLowerCase()}` });
  well.append(given ? made("img", { src: given, alt: `Given: panel ${place.toLowerCase()}` }) : made("span", { "aria-hidden": true, text: "+" }));
  well.addEventListener("click", () => choose(number));
  const head = made("div", { className: "dh-place" }, made("span", { text: place }));
  if (given) {
    const out = made("button", { type: "button", className: "dh-link", text: "Draw it instead", "aria-label": `Draw panel ${place.toLowerCase()} instead of keeping its picture` });
    out.addEventListener("click", () => { const { [number]: _, ...rest } = state.given; state.given = rest; build(); commit(); });
    head.append(made("span", { className: "dh-kept", text: "kept" }), out);
  }
  const line = made("div", { className: "dh-panel", "data-panel": number }, well, made("div", { className: "dh-words" }, head, area));
  dropping(line, (data) => give(number, data.files[0]));
  return line;
}

// --- what the visitor does ---

root.addEventListener("input", (event) => {
  const name = event.target.dataset?.text;
  if (name === undefined) return;
  if (name === "summary") state.summary = event.target.value;
  else { state.texts = [...state.texts]; state.texts[+name] = event.target.value; for (let n = 0; n < state.texts.length; n++) state.texts[n] ??= ""; }
  commit();
});

const file = find('input[type="file"]');
let asked = 0;
function choose(number) { asked = number; file.click(); }
file.addEventListener("change", () => { give(asked, file.files[0]); file.value = ""; });

async function give(number, given) {
  if (!given) return;
  if (given.size > LIMIT) return problem("This picture is larger than 20 MB; please choose a smaller one.");
  problem("");
  commit();
  trigger("give", { number, data: await encoded(given) });
}

watch("value", update);
update();
// Names of the events that this component has: 'give', 'example'
