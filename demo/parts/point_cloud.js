// Points in space on a canvas, turned by pointer and keys. Nothing of it needs a graphics card.
function pointCloud(canvas) {
  const TURN = 0.1, NEARER = 1.15, START = { yaw: -0.35, pitch: 0.16, zoom: 1 };
  let points = null, view = { ...START }, asked = 0;

  const decoded = (text, kind) => new kind(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
  const clamp = (value, most) => Math.max(-most, Math.min(most, value));

  function show({ rows, columns, far, half_view: half, levels, colours }) {
    const depth = decoded(levels, Uint16Array), rgb = decoded(colours, Uint8Array), longest = Math.max(rows, columns);
    const known = [...depth.keys()].filter((k) => depth[k]);
    const place = new Float32Array(3 * known.length), colour = new Uint32Array(known.length);
    known.forEach((k, n) => {
      const z = (depth[k] / 65535) * far, row = Math.floor(k / columns), column = k % columns;
      place[3 * n] = ((2 * column + 1 - columns) / longest) * half * z;
      place[3 * n + 1] = ((2 * row + 1 - rows) / longest) * half * z;
      place[3 * n + 2] = z;
      colour[n] = (255 << 24) | (rgb[3 * k + 2] << 16) | (rgb[3 * k + 1] << 8) | rgb[3 * k];
    });
    const sorted = Float32Array.from(known, (k) => (depth[k] / 65535) * far).sort();
    points = { place, colour, half, longest, count: known.length, middle: sorted[sorted.length >> 1] || 1 };
    view = { ...START };
    canvas.setAttribute("aria-label", `${known.length} points of the picture in space. The arrow keys turn them, plus and minus come nearer and go back, Home begins again.`);
    paint();
  }

  function paint() {
    if (!asked && points) asked = requestAnimationFrame(() => { asked = 0; draw(); });
  }

  // Each point is a square of its size on the screen; of several on a pixel the nearest is seen.
  function draw() {
    const side = Math.min(900, Math.round(canvas.clientWidth * (window.devicePixelRatio || 1)));
    if (!side) return;
    canvas.width = canvas.height = side;
    const { place, colour, half, longest, count, middle } = points, context = canvas.getContext("2d");
    const image = context.createImageData(side, side), pixels = new Uint32Array(image.data.buffer);
    const nearest = new Float32Array(side * side).fill(Infinity), focal = side / 2 / half;
    const [cy, sy, cp, sp] = [Math.cos(view.yaw), Math.sin(view.yaw), Math.cos(view.pitch), Math.sin(view.pitch)];
    for (let n = 0; n < count; n++) {
      const x = place[3 * n], y = place[3 * n + 1], away = place[3 * n + 2] - middle;
      const tx = cy * x + sy * away, tz = cy * away - sy * x;
      const ty = cp * y - sp * tz, z = sp * y + cp * tz + middle / view.zoom;
      if (z < 0.05 * middle) continue;
      const size = Math.min(24, Math.max(1, Math.ceil((1.6 * side * place[3 * n + 2]) / (longest * z))));
      const left = Math.round(side / 2 + (focal * tx) / z - size / 2), top = Math.round(side / 2 + (focal * ty) / z - size / 2);
      for (let row = Math.max(0, top); row < Math.min(side, top + size); row++) {
        for (let at = row * side + Math.max(0, left), end = row * side + Math.min(side, left + size); at < end; at++) {
          if (z < nearest[at]) { nearest[at] = z; pixels[at] = colour[n]; }
        }
      }
    }
    context.putImageData(image, 0, 0);
  }

  function turn(yaw, pitch) {
    view.yaw = clamp(view.yaw + yaw, 1.5);
    view.pitch = clamp(view.pitch + pitch, 1.2);
    paint();
  }

  function zoom(by) {
    view.zoom = Math.max(0.5, Math.min(4, view.zoom * by));
    paint();
  }

  const KEYS = {
    ArrowLeft: () => turn(-TURN, 0), ArrowRight: () => turn(TURN, 0), ArrowUp: () => turn(0, -TURN), ArrowDown: () => turn(0, TURN),
    "+": () => zoom(NEARER), "=": () => zoom(NEARER), "-": () => zoom(1 / NEARER), Home: () => { view = { ...START }; paint(); },
  };
  canvas.addEventListener("keydown", (event) => {
    if (!KEYS[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  const held = new Map();
  canvas.addEventListener("pointerdown", (event) => { held.set(event.pointerId, event); canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointermove", (event) => {
    const last = held.get(event.pointerId);
    if (!last) return;
    const other = [...held.values()].find((each) => each.pointerId !== event.pointerId);
    const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY) || 1;
    if (other) zoom(apart(event) / apart(last));
    else turn((event.clientX - last.clientX) / 150, (event.clientY - last.clientY) / 150);
    held.set(event.pointerId, event);
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => held.delete(event.pointerId));
  new ResizeObserver(paint).observe(canvas);
  return { show };
}
