// Painting of an image: segments over the photo, errors, what is pointed out, and the enlarged part.

const chosen = (segment) => (state.classOf < 0 || segment[CLASS] === state.classOf)
  && (!state.errors.size || state.errors.has(segment[ERROR]));

// The segments to point out: the one under the mouse (else the pinned one) and its partner, by side.
function focus() {
  const at = state.hover || state.pin;
  const result = { truth: -1, prediction: -1 };
  if (!at) return result;
  result[at.side] = at.row;
  const beside = at.partner ?? -1; // in the picture of errors: what else lies under the mouse
  if (at.row >= 0) result[other(at.side)] = beside >= 0 ? beside : state.image[at.side].rows[at.row][PARTNER];
  return result;
}

function paintSide(canvas, image, side, row) {
  const { rows, map, edges } = image[side];
  const opacity = image.photo ? state.opacity : 1 - 0.35 * (1 - state.opacity); // no photo to be seen through the paint
  const fill = new Uint32Array(rows.length + 1), line = new Uint32Array(rows.length + 1);
  rows.forEach((segment, k) => {
    const color = image.colors[side][k], plain = chosen(segment);
    fill[k + 1] = packed(color, k === row ? Math.max(opacity, 0.7) : plain ? opacity : 0.07);
    line[k + 1] = k === row ? 0xffffffff : packed(color, plain ? Math.min(1, 0.15 + 2 * opacity) : 0.15);
  });
  put(canvas, image, (pixels) => {
    for (let i = 0; i < pixels.length; i++) pixels[i] = (edges[i] ? line : fill)[map[i]];
  });
  if (data.figure === "F1") boxes(canvas, image, side); // a model of objects: boxes with their scores
  ring(canvas, image, side, row);
}

// Colour of every pair (truth row, predicted row): the error of either side, striped where both have one.
function paintErrors(canvas, image, rows) {
  const { truth, prediction } = image;
  const width = prediction.rows.length + 1;
  const first = new Uint32Array((truth.rows.length + 1) * width), second = new Uint32Array(first.length);
  const paintOf = (segment) => packed(colorOfError[segment[ERROR]], chosen(segment) ? 0.75 : 0.1);
  const objects = data.figure === "F1"; // beside objects there is background, where a prediction is wrong, and no void
  const unscored = (segment) => ["ignored", "crowd"].includes(data.errors[segment[ERROR]].key);
  const wrong = (segment) => segment && !["found", "ignored", "crowd"].includes(data.errors[segment[ERROR]].key);
  for (let t = 0; t <= truth.rows.length; t++) {
    for (let p = 0; p < width; p++) {
      const a = truth.rows[t - 1], b = prediction.rows[p - 1];
      const at = t * width + p;
      const paints = [a, b].filter(wrong).map(paintOf);
      const scored = a ? !unscored(a) : objects && b && !unscored(b);
      if (!scored) paints.splice(0, 2, packed([255, 255, 255], 0.75));
      else if (!paints.length && a && b && a[PARTNER] === p - 1) paints.push(packed(GREY.found, 0.55));
      else if (!paints.length) paints.push(packed(GREY.outline, 0.8));
      first[at] = paints[0];
      second[at] = paints[paints.length - 1];
    }
  }
  const stripe = Math.max(3, Math.round(image.width / 110));
  put(canvas, image, (pixels) => {
    for (let i = 0, y = 0; y < image.height; y++) {
      for (let x = 0; x < image.width; x++, i++) {
        const t = truth.map[i], p = prediction.map[i], at = t * width + p;
        const on = (truth.edges[i] && t && t - 1 === rows.truth) || (prediction.edges[i] && p && p - 1 === rows.prediction);
        pixels[i] = on ? 0xffffffff : truth.edges[i] && t ? 0xb0282018
          : Math.floor((x + y) / stripe) % 2 ? second[at] : first[at];
      }
    }
  });
  for (const side of SIDES) ring(canvas, image, side, rows[side]);
}

function put(canvas, image, paint) {
  if (canvas.width !== image.width || canvas.height !== image.height) {
    Object.assign(canvas, { width: image.width, height: image.height });
  }
  const context = canvas.getContext("2d");
  const picture = context.createImageData(image.width, image.height);
  paint(new Uint32Array(picture.data.buffer));
  context.putImageData(picture, 0, 0);
}

// The box of each object that is shown, with its class and, where it was predicted, its score.
function boxes(canvas, image, side) {
  const context = canvas.getContext("2d");
  const size = Math.max(9, image.width / 45);
  Object.assign(context, { font: `600 ${size}px system-ui, sans-serif`, textBaseline: "bottom", lineJoin: "round" });
  image[side].rows.forEach((segment, k) => {
    if (!chosen(segment)) return;
    const [x, y, width, height] = segment.slice(BOX, BOX + 4).map((v) => v * image.scale);
    const color = `rgb(${image.colors[side][k].join(" ")})`;
    Object.assign(context, { lineWidth: Math.max(1.5, image.width / 320), strokeStyle: color });
    context.strokeRect(x, y, width, height);
    const score = side === "prediction" ? ` ${segment[SCORE].toFixed(2)}` : "";
    const words = data.classes[segment[CLASS]].name + score;
    const left = Math.max(0, Math.min(x, image.width - context.measureText(words).width - 2)), bottom = Math.max(y, size + 2);
    Object.assign(context, { lineWidth: size / 4, strokeStyle: "#000000c0", fillStyle: "#ffffff" });
    context.strokeText(words, left + 2, bottom);
    context.fillText(words, left + 2, bottom);
  });
}

function ring(canvas, image, side, row) { // around a segment too small to be seen, or that vanished in the small map
  if (row < 0) return;
  const [x, y, width, height] = image[side].rows[row].slice(BOX, BOX + 4).map((v) => v * image.scale);
  if (!width || Math.max(width, height) > image.width / 14) return;
  const context = canvas.getContext("2d");
  for (const [size, color] of [[6, "#000000b0"], [2.5, "#ffffff"]]) {
    context.beginPath();
    context.arc(x + width / 2, y + height / 2, Math.max(image.width / 40, width), 0, 7);
    Object.assign(context, { lineWidth: size * image.width / 640, strokeStyle: color });
    context.stroke();
  }
}

function paint() {
  if (!state.image) return;
  const rows = focus();
  for (const side of SIDES) paintSide(part(side).querySelector("canvas"), state.image, side, rows[side]);
  paintErrors(part("errors").querySelector("canvas"), state.image, rows);
}

// ---- the enlarged part: the same of all three pictures

const LARGEST = 12;

// zoom: 1 … LARGEST; x, y: what stands in the middle, 0 … 1 of the picture. Never shows anything beyond the rim.
function look(zoom, x = state.at.x, y = state.at.y) {
  zoom = Math.min(LARGEST, Math.max(1, zoom));
  const inside = (v) => Math.min(1 - 0.5 / zoom, Math.max(0.5 / zoom, v));
  state.at = { zoom, x: inside(x), y: inside(y) };
  const style = part("panels").style;
  style.setProperty("--zoom", zoom);
  style.setProperty("--left", `${100 * (0.5 - state.at.x * zoom)}%`);
  style.setProperty("--top", `${100 * (0.5 - state.at.y * zoom)}%`);
  part("panels").classList.toggle("enlarged", zoom > 1);
  part("zoom").textContent = `${Math.round(100 * zoom)} %`;
}

// Enlarge so that the point (u, v), 0 … 1 of the frame, keeps showing what it shows.
function lookInto(factor, u = 0.5, v = 0.5) {
  const { zoom, x, y } = state.at;
  const next = Math.min(LARGEST, Math.max(1, zoom * factor));
  look(next, x + (u - 0.5) * (1 / zoom - 1 / next), y + (v - 0.5) * (1 / zoom - 1 / next));
}
