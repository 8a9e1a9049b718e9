// What the viewer's page knows: data, state, and the images, loaded and decoded as they are looked at.
// images.js, paint.js and viewer.js stand in one block, in this order. No library, no network; text from files goes into
// the page through textContent only.

const data = JSON.parse(document.getElementById("viewer-data").textContent);
const root = document.getElementById("viewer");
const part = (name) => root.querySelector(`[data-part="${name}"]`);
const SIDES = ["truth", "prediction"];
const FOUND = data.errors.findIndex((e) => e.key === "found");
const GREY = { outline: [112, 120, 128], found: [198, 205, 211] };
// columns of a segment's row (viewer.py, image_content)
const ID = 0, CLASS = 1, AREA = 2, BOX = 3, ERROR = 7, PARTNER = 8, IOU = 9, SCORE = 10;
// columns of an image's row; PAIRS is [class, error, segments, …]
const NAME = 0, SCORED = 1, WIDTH = 2, HEIGHT = 3, PAIRS = 4;
const ROW_HEIGHT = 46;

const state = {
  order: [], // places in data.images, as filtered and sorted
  shown: -1, // place of the image on stage
  image: null, // its decoded content
  errors: new Set(), classOf: -1, words: "", sort: "worst",
  hover: null, pin: null, // {side, row}
  opacity: 0.55, column: "error", down: false,
  at: { zoom: 1, x: 0.5, y: 0.5 }, // the part of the picture that is seen
};

function element(name, properties = {}, ...children) {
  const result = Object.assign(document.createElement(name), properties);
  result.append(...children);
  return result;
}
const percent = (value) => (value === null ? "–" : (100 * value).toFixed(1));
// An IoU beside the threshold of 50, or just short of 100, must not look as if it were that.
const iouText = (value) => (["50.0", "100.0"].includes(percent(value)) && ![0.5, 1].includes(value) ? (100 * value).toFixed(3) : percent(value));
const count = (value) => String(value).replace(/\B(?=(\d{3})+$)/g, "\u202f");
const rgb = (color) => `rgb(${color.join(" ")})`;
const sideName = (side) => (side === "truth" ? "Truth" : "Prediction");
const other = (side) => (side === "truth" ? "prediction" : "truth");
const chip = (color) => { const c = element("i", { className: "chip" }); c.style.background = color; return c; };

// ---- loading and decoding

const waiting = new Map(); // place → the promise's resolve
window.viewerImage = (place, content) => { waiting.get(place)?.(content); waiting.delete(place); };

function contentOf(place) {
  const inside = document.getElementById(`image-${place}`);
  if (inside) return Promise.resolve(JSON.parse(inside.textContent));
  return new Promise((resolve, reject) => {
    waiting.set(place, resolve);
    const script = element("script", { src: `${encodeURIComponent(data.folder)}/${place}.js` });
    script.onload = () => script.remove();
    script.onerror = () => {
      script.remove();
      reject(new Error(`${data.folder}/${place}.js is missing: keep the folder ${data.folder} beside this page.`));
    };
    document.head.append(script);
  });
}

async function rowsOf(side, height, width) { // rows counted from 1, 0 = void; (height · width)
  const packed = Uint8Array.from(atob(side.map), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const raw = await new Response(stream).arrayBuffer();
  const rows = new { 8: Uint8Array, 16: Uint16Array, 32: Uint32Array }[side.bits](raw);
  for (let i = width; i < height * width; i++) rows[i] ^= rows[i - width];
  return rows;
}

function enlarged(rows, height, width, factor) { // each pixel becomes factor × factor: thin lines on small images
  const result = new rows.constructor(height * width * factor * factor);
  for (let y = 0, i = 0; y < height * factor; y++) {
    const line = Math.floor(y / factor) * width;
    for (let x = 0; x < width * factor; x++) result[i++] = rows[line + Math.floor(x / factor)];
  }
  return result;
}

function edgesOf(rows, height, width) { // 1 where a pixel beside or below belongs to another segment
  const edges = new Uint8Array(rows.length);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (x + 1 < width && rows[i] !== rows[i + 1]) edges[i] = edges[i + 1] = 1;
      if (y + 1 < height && rows[i] !== rows[i + width]) edges[i] = edges[i + width] = 1;
    }
  }
  return edges;
}

async function decoded(place) {
  const content = await contentOf(place);
  let [height, width] = content.size;
  const factor = Math.max(1, Math.ceil(480 / Math.max(height, width)));
  const image = { place, photo: content.photo };
  for (const side of SIDES) {
    const rows = await rowsOf(content[side], height, width);
    const large = factor > 1 ? enlarged(rows, height, width, factor) : rows;
    image[side] = { rows: content[side].rows, map: large, edges: edgesOf(large, height * factor, width * factor) };
  }
  image.height = height * factor;
  image.width = width * factor;
  image.scale = image.width / data.images[place][WIDTH]; // canvas pixels per pixel of the file
  Object.assign(image, { colors: colorsOf(image) });
  return image;
}

const loaded = new Map(); // the images looked at last, so that going back is instant
function load(place) {
  const image = loaded.get(place) || decoded(place);
  loaded.delete(place);
  loaded.set(place, image);
  image.catch(() => loaded.delete(place));
  if (loaded.size > 12) loaded.delete(loaded.keys().next().value);
  return image;
}

// ---- colours

function toHsv([r, g, b]) {
  const high = Math.max(r, g, b), range = high - Math.min(r, g, b);
  const hue = !range ? 0 : high === r ? ((g - b) / range + 6) % 6 : high === g ? (b - r) / range + 2 : (r - g) / range + 4;
  return [hue / 6, high && range / high, high / 255];
}
function fromHsv(hue, saturation, value) {
  const part = (n) => { const k = (n + hue * 6) % 6; return value * (1 - saturation * Math.max(0, Math.min(k, 4 - k, 1))); };
  return [part(5), part(3), part(1)].map((v) => Math.round(255 * v));
}

// Void unpainted, stuff in its class's colour, things in variations of it, a match in the colour of its truth.
function colorsOf(image) {
  const spread = 0.3 / Math.max(1, data.classes.filter((c) => c.thing).length);
  const handedOut = data.classes.map(() => 0);
  const next = (segment) => {
    const { color, thing } = data.classes[segment[CLASS]];
    const number = thing ? handedOut[segment[CLASS]]++ : 0;
    if (!number) return color;
    const [hue, saturation, value] = toHsv(color);
    const turn = (0.6180339887 * number) % 1;
    return fromHsv((hue + spread * (2 * turn - 1) + 1) % 1,
      Math.min(1, Math.max(0.45, saturation * [1, 1.15, 0.8][number % 3])),
      Math.min(1, Math.max(0.35, value * [1, 0.78, 1.18, 0.9][number % 4])));
  };
  const truth = image.truth.rows.map(next);
  const matched = (segment) => segment[ERROR] === FOUND && segment[PARTNER] >= 0;
  return { truth, prediction: image.prediction.rows.map((s) => (matched(s) ? truth[s[PARTNER]] : next(s))) };
}

const colorOfError = data.errors.map((e) => [1, 3, 5].map((k) => parseInt(e.color.slice(k, k + 2), 16)));
const packed = ([r, g, b], alpha) => ((Math.round(255 * alpha) << 24) | (b << 16) | (g << 8) | r) >>> 0;
