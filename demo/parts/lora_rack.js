// LoRAs to switch on, each with a weight. props.value is {loras: [{id, name, layout, model, scale, on}], model,
// problem}. The server sends new LoRAs in `add`, and in `on` the weights of those that are to be on, and no others.
const root = element.querySelector(".dh-rack");
const find = (selector) => root.querySelector(selector);
const LIMIT = 48 * 1024 * 1024;
const state = { loras: [], model: "", problem: "" };

const shown = () => state.loras.filter(({ model }) => model === state.model);

const { commit, update } = kept(props, state, (value) => {
  for (const lora of value.add || []) state.loras = [...state.loras.filter(({ id }) => id !== lora.id), lora];
  if (value.on) state.loras = state.loras.map((lora) => ({ ...lora, on: lora.id in value.on, scale: value.on[lora.id] ?? lora.scale }));
  build();
});
const problem = (text) => tellProblem(root, state, text);

function build() {
  const on = shown().filter((lora) => lora.on);
  find(".dh-count").textContent = on.length ? "" : "none: the model alone";
  const bring = made("button", { type: "button", className: "dh-small", text: "Bring a file", title: "A .safetensors file of a LoRA for this model" });
  bring.addEventListener("click", () => file.click());
  find(".dh-presets").replaceChildren(...shown().map(chip), bring);
  find(".dh-weights").replaceChildren(...on.map(weight));
  problem(state.problem);
}

function chip(lora) {
  const title = lora.layout ? `Learned sets of ${lora.layout.replace("x", " \u00d7 ")} panels` : "";
  const button = made("button", { type: "button", className: "dh-chip", text: lora.name, "aria-pressed": Boolean(lora.on), title: title || undefined });
  button.addEventListener("click", () => {
    change(lora, { on: !lora.on });
    build();
    [...root.querySelectorAll(".dh-chip")].find((other) => other.textContent === lora.name)?.focus();
  });
  return button;
}

function weight(lora) {
  const slider = made("input", { type: "range", min: 0, max: 2, step: 0.05, "aria-label": `Weight of ${lora.name}` });
  slider.value = lora.scale;
  const number = made("output", { text: (+lora.scale).toFixed(2) });
  slider.addEventListener("input", () => { number.textContent = (+slider.value).toFixed(2); change(lora, { scale: +slider.value }); });
  return made("label", { className: "dh-weight" }, made("span", { text: lora.name }), slider, number);
}

function change(lora, parts) {
  state.loras = state.loras.map((other) => (other.id === lora.id ? { ...other, ...parts } : other));
  problem("");
  commit();
}

const file = find('input[type="file"]');
file.addEventListener("change", () => { bring(file.files[0]); file.value = ""; });
dropping(root, (data) => bring(data.files[0]));

async function bring(given) {
  if (!given) return;
  if (!/\.safetensors$/i.test(given.name)) return problem("A LoRA is a .safetensors file here; this is another kind.");
  if (given.size > LIMIT) return problem("This file is larger than 48 MB.");
  problem("");
  trigger("bring", { name: given.name, data: await encoded(given) });
}

watch("value", update);
update();
// Names of the events that this component has: 'bring'
