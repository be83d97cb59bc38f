// A visitor's own sets: props.value is {layouts, layout, id, told, problems, notes}; what the server sends counts
// once, by its stamp.
const root = element.querySelector(".dh-drops");
const find = (selector) => root.querySelector(selector);
const LIMIT = 32 * 1024 * 1024, FILES = 400;
const USED = /\.(zip|txt|caption|jsonl|csv|png|jpe?g|webp|heic|heif|bmp|gif|tiff?|avif)$/i;
const state = { layouts: [], layout: [1, 2], id: "", told: "", problems: [], notes: [] };

const { commit, update } = kept(props, state, build);

function build() {
  find(".dh-layouts").replaceChildren(...state.layouts.map((layout) => layoutChip(layout, state.layout, () => {
    state.layout = [layout.rows, layout.columns];
    build();
    commit();
    if (state.id) trigger("check", {});
  })));
  const told = find(".dh-told"), list = find(".dh-problems");
  told.textContent = state.told;
  told.hidden = !state.told;
  const lines = [...state.problems.map((text) => made("li", { text })), ...state.notes.map((text) => made("li", { className: "dh-quiet", text }))];
  list.replaceChildren(...lines);
  list.hidden = !lines.length;
  root.dataset.state = state.problems.length ? "error" : "";
}

function tell(told, problems = []) {
  Object.assign(state, { told, problems, notes: [] });
  build();
  commit();
}

// --- files ---

for (const kind of ["files", "folder"]) {
  const input = find(`.dh-${kind}`);
  find(`[data-do="${kind}"]`).addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    const files = [...input.files].map((file) => ({ path: file.webkitRelativePath || file.name, file }));
    input.value = "";
    send(files);
  });
}
dropping(find(".dh-zone"), async (data) => {
  const entries = [...data.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const files = entries.length ? (await Promise.all(entries.map((entry) => walked(entry)))).flat() : [...data.files].map((file) => ({ path: file.name, file }));
  send(files);
});

// All files below a dropped folder.
async function walked(entry, depth = 0) {
  if (entry.isFile) return [{ path: entry.fullPath.replace(/^\//, ""), file: await new Promise((done, failed) => entry.file(done, failed)) }];
  if (depth > 4) return [];
  const reader = entry.createReader(), inside = [];
  for (;;) {
    const some = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!some.length) break;
    inside.push(...some);
  }
  return (await Promise.all(inside.map((each) => walked(each, depth + 1)))).flat();
}

async function send(all) {
  const files = all.filter(({ path }) => USED.test(path) && !/(^|\/)\./.test(path));
  if (!files.length) return tell("", ["There is no zip and no picture among these files."]);
  if (files.length > FILES) return tell("", [`These are ${files.length} files; ${FILES} are the most.`]);
  if (files.reduce((sum, { file }) => sum + file.size, 0) > LIMIT) return tell("", ["These files are larger than 32 MB together; smaller pictures will do."]);
  tell("Looking at them");
  // Not `path`: Gradio takes what has one for a file of its own.
  const sent = await Promise.all(files.map(async ({ path, file }) => ({ name: path, data: await encoded(file) })));
  trigger("bring", { files: sent });
}

watch("value", update);
update();
// Names of the events that this component has: 'bring', 'check'
