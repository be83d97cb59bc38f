// A mask over a picture, painted with a brush, found by the model, or both: {load, setMap, reach, tool, size, undo,
// clear, invert, uri, covered}. `changed` is called after each change.
function maskBrush(canvas, ring, changed) {
  const layer = document.createElement("canvas"); // opaque where the picture may change
  const pen = layer.getContext("2d", { willReadFrequently: true }), shown = canvas.getContext("2d");
  let steps = [], map = null, reach = 0.5, tool = "paint", size = 14, stroke = null, cursor = [0.5, 0.5];

  // --- the layer: what was found, then what was done by hand ---

  function begin() {
    pen.globalCompositeOperation = "source-over";
    pen.clearRect(0, 0, layer.width, layer.height);
    if (!map) return;
    const found = pen.createImageData(layer.width, layer.height);
    for (let k = 0; k < map.length; k++) found.data.fill(map[k] >= 255 * reach ? 255 : 0, 4 * k, 4 * k + 4);
    pen.putImageData(found, 0, 0);
  }

  function put({ kind, points, width }, from = 0) {
    pen.globalCompositeOperation = { paint: "source-over", erase: "destination-out", invert: "xor" }[kind];
    pen.fillStyle = pen.strokeStyle = "#fff";
    if (kind === "invert") return pen.fillRect(0, 0, layer.width, layer.height);
    pen.lineWidth = width;
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    points.slice(Math.max(0, from - 1)).forEach(([x, y], k) => (k ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    if (points.length - from < 2) pen.lineTo(...points.at(-1));
    pen.stroke();
  }

  function all() {
    begin();
    for (const step of steps) put(step);
    look();
  }

  function look() {
    shown.globalCompositeOperation = "source-over";
    shown.clearRect(0, 0, canvas.width, canvas.height);
    shown.drawImage(layer, 0, 0);
    shown.globalCompositeOperation = "source-in";
    shown.fillStyle = getComputedStyle(canvas).getPropertyValue("--dh-accent") || "#b8441f";
    shown.fillRect(0, 0, canvas.width, canvas.height);
  }

  function done(step) {
    steps.push(step);
    all();
    changed();
  }

  // --- by pointer and by keys ---

  const width = () => (size / 100) * Math.max(layer.width, layer.height);

  function place(event) {
    const box = canvas.getBoundingClientRect();
    cursor = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    show();
    return [cursor[0] * layer.width, cursor[1] * layer.height];
  }

  function show() {
    const box = canvas.getBoundingClientRect(), across = width() * (box.width / layer.width || 0);
    ring.hidden = false;
    Object.assign(ring.style, { width: `${across}px`, height: `${across}px`, left: `${100 * cursor[0]}%`, top: `${100 * cursor[1]}%` });
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault();
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    stroke = { kind: tool, points: [place(event)], width: width() };
    put(stroke);
    look();
  });
  canvas.addEventListener("pointermove", (event) => {
    const at = place(event);
    if (!stroke) return;
    stroke.points.push(at);
    put(stroke, stroke.points.length - 1);
    look();
  });
  const up = () => { if (stroke) { const made = stroke; stroke = null; done(made); } };
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", up);
  canvas.addEventListener("pointerleave", () => { if (!stroke && document.activeElement !== canvas) ring.hidden = true; });
  canvas.addEventListener("focus", show);
  canvas.addEventListener("blur", () => { ring.hidden = true; });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const [w, h] = [layer.width, layer.height], before = [cursor[0] * w, cursor[1] * h];
    if (move) cursor = cursor.map((share, k) => Math.min(1, Math.max(0, share + (move[k] * width()) / 2 / (k ? h : w))));
    const after = [cursor[0] * w, cursor[1] * h];
    if (event.key === " " || (move && event.shiftKey)) done({ kind: tool, points: move ? [before, after] : [after], width: width() });
    else if (!move) return;
    event.preventDefault();
    show();
  });

  return {
    load(w, h) {
      [canvas.width, canvas.height] = [layer.width, layer.height] = [w, h];
      steps = [];
      map = null;
      all();
    },
    setMap(pixels) { map = pixels; all(); },
    set reach(share) { reach = share; all(); },
    set tool(name) { tool = name; },
    set size(share) { size = share; if (!ring.hidden) show(); },
    undo() { steps.pop(); all(); changed(); },
    clear() { steps = []; map = null; all(); changed(); },
    invert() { done({ kind: "invert" }); },
    get canUndo() { return steps.length > 0; },
    get found() { return Boolean(map); },
    get sides() { return [layer.width, layer.height]; },
    // The mask as a picture, white on black, and the share of it that is white.
    uri() {
      const picture = made("canvas", { width: layer.width, height: layer.height }), black = picture.getContext("2d");
      black.fillRect(0, 0, layer.width, layer.height);
      black.drawImage(layer, 0, 0);
      return picture.toDataURL("image/png");
    },
    covered() {
      const { data } = pen.getImageData(0, 0, layer.width, layer.height);
      let white = 0;
      for (let k = 3; k < data.length; k += 4) white += data[k] >= 128;
      return white / (data.length / 4);
    },
  };
}
