// A picture and a question about it. props.value is {picture, shows, question, examples: [{src, name}], questions,
// problem}.
const root = element.querySelector(".dh-see");
const find = (selector) => root.querySelector(selector);
const doing = (name) => find(`[data-do="${name}"]`);
const LIMIT = 20 * 1024 * 1024;
const state = { picture: "", shows: "", question: "", examples: [], questions: [], problem: "" };
const own = find(".dh-own"), video = find(".dh-camera"), question = find(".dh-question"), file = find('input[type="file"]');
let stream = null;

const { commit, update } = kept(props, state, build);
const problem = (text) => tellProblem(root, state, text);

function build() {
  if (state.picture) { own.src = state.picture; own.alt = state.shows; }
  own.hidden = !state.picture || Boolean(stream);
  find(".dh-source p").hidden = Boolean(state.picture || stream);
  question.value = state.question;
  find(".dh-scenes").replaceChildren(...state.examples.map(({ src, name }, number) => {
    const scene = made("button", { type: "button", "aria-label": `Try: ${name}`, title: name }, made("img", { src, alt: "" }));
    scene.addEventListener("click", () => { close(); trigger("example", { number }); });
    return scene;
  }));
  find(".dh-questions").replaceChildren(...state.questions.map((text) => {
    const chip = made("button", { type: "button", className: "dh-small", text });
    chip.addEventListener("click", () => { state.question = question.value = text; ask(); });
    return chip;
  }));
  problem(state.problem);
}

// --- what the visitor does ---

function ask() {
  commit();
  trigger("ask", {});
}

question.addEventListener("input", () => { state.question = question.value; commit(); });
question.addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.isComposing) ask(); });
file.addEventListener("change", () => { give(file.files[0]); file.value = ""; });
dropping(find(".dh-source"), (data) => give(data.files[0]));

async function give(given) {
  if (!given) return;
  if (given.size > LIMIT) return problem("This picture is larger than 20 MB; please choose a smaller one.");
  close();
  problem("");
  commit();
  trigger("give", { data: await encoded(given) });
}

// --- the camera ---

async function open() {
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch {
    return problem("The camera cannot be used here; please choose a picture.");
  }
  problem("");
  video.srcObject = stream;
  show();
  doing("shoot").focus();
}

function close() {
  for (const track of stream?.getTracks() || []) track.stop();
  stream = video.srcObject = null;
  show();
}

function show() {
  const on = Boolean(stream);
  video.hidden = doing("shoot").hidden = doing("close").hidden = !on;
  own.hidden = on || !state.picture;
  find(".dh-source p").hidden = on || Boolean(state.picture);
  doing("camera").hidden = on || !navigator.mediaDevices?.getUserMedia;
  doing("choose").hidden = on;
}

function shoot() {
  const canvas = made("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob(give, "image/png");
}

const ACTIONS = { choose: () => file.click(), camera: open, shoot, close: () => { close(); doing("camera").focus(); } };
root.addEventListener("click", (event) => ACTIONS[event.target.closest("[data-do]")?.dataset.do]?.());

watch("value", update);
show();
update();
// Names of the events that this component has: 'ask', 'give', 'example'
