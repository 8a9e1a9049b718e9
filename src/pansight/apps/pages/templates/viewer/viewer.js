// What a person does with the viewer: read a segment, sort the table, filter and sort the list, move, enlarge.

// ---- words about a segment

function factsOf(side, segment) {
  const partner = segment[PARTNER] >= 0 ? state.image[other(side)].rows[segment[PARTNER]] : null;
  const [, , width, height] = data.images[state.shown];
  const facts = [["area", `${count(segment[AREA])} px (${(100 * segment[AREA] / (width * height)).toPrecision(2)} %)`]];
  if (partner) {
    const found = segment[ERROR] === FOUND;
    facts.unshift(["IoU", iouText(segment[IOU])],
      [found ? "match" : "partner", `${other(side)} ${partner[ID]}, ${data.classes[partner[CLASS]].name}`]);
  }
  if (segment[SCORE] !== 1) facts.push(["score", segment[SCORE].toFixed(3)]);
  return facts;
}

function block(side, row, meaning = false) {
  const segment = state.image[side].rows[row], error = data.errors[segment[ERROR]];
  const { name, thing } = data.classes[segment[CLASS]];
  const list = element("dl");
  for (const [key, value] of factsOf(side, segment)) {
    list.append(element("div", {}, element("dt", { textContent: key }), element("dd", { textContent: value })));
  }
  const badge = element("span", { className: "badge" }, chip(error.color), error.name);
  const head = element("header", {}, chip(rgb(state.image.colors[side][row])),
    element("b", { textContent: `${sideName(side)} ${segment[ID]} · ${name}` }), badge);
  if (meaning) head.append(element("small", { textContent: `${thing ? "thing" : "stuff"} · ${error.meaning}` }));
  return element("div", { className: "words" }, head, list);
}

function showTip(event, at) {
  const tip = part("tip");
  const sides = (at ? at.sides : []).filter((s) => s.row >= 0);
  tip.hidden = !sides.length;
  if (!sides.length) return;
  tip.replaceChildren(...sides.map((s) => block(s.side, s.row)));
  const right = event.clientX + 18 + tip.offsetWidth > innerWidth - 8;
  tip.style.left = `${Math.max(8, right ? event.clientX - 18 - tip.offsetWidth : event.clientX + 18)}px`;
  tip.style.top = `${Math.max(8, Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8))}px`;
}

function showPin() {
  const place = part("pinned");
  if (!state.pin) {
    place.replaceChildren(element("p", { textContent: "Point at a segment to read it; click it to keep it here. Keys: ← → other images, + − 0 size." }));
    return;
  }
  const blocks = SIDES.map((side) => [side, focusOfPin()[side]]).filter(([, row]) => row >= 0);
  blocks.sort(([side]) => (side === state.pin.side ? -1 : 1));
  const close = element("button", { className: "plain", textContent: "✕", title: "Let go (Esc)" });
  close.setAttribute("aria-label", "Let go of the segment");
  close.addEventListener("click", () => pin(null));
  place.replaceChildren(...blocks.map(([side, row]) => block(side, row, true)), close);
}
function focusOfPin() {
  const hover = state.hover;
  state.hover = null;
  const result = focus();
  state.hover = hover;
  return result;
}

function pin(at) {
  const same = at && state.pin && at.side === state.pin.side && at.row === state.pin.row;
  state.pin = at && at.row >= 0 && !same ? at : null;
  state.hover = null;
  showPin();
  markRows();
  paint();
}

// ---- the table of segments

const COLUMNS = [
  ["class", "Class", (s) => data.classes[s.segment[CLASS]].name],
  ["side", "Side", (s) => sideName(s.side)],
  ["id", "Id", (s) => s.segment[ID]],
  ["error", "Error", (s) => (s.segment[ERROR] === FOUND ? data.errors.length : s.segment[ERROR])],
  ["iou", "IoU", (s) => (s.segment[PARTNER] < 0 ? -1 : s.segment[IOU])],
  ["match", "Match or partner", (s) => s.segment[PARTNER]],
  ["area", "Area, px", (s) => s.segment[AREA]],
  ["score", "Score", (s) => s.segment[SCORE]],
];
const MOST_ROWS = 400;

function showTable(all = false) {
  const image = state.image;
  const scored = image.prediction.rows.some((s) => s[SCORE] !== 1);
  const columns = COLUMNS.filter(([key]) => key !== "score" || scored);
  const value = columns.find(([key]) => key === state.column)?.[2] || columns[3][2];
  const segments = SIDES.flatMap((side) => image[side].rows.map((segment, row) => ({ side, row, segment }))).filter((s) => chosen(s.segment));
  segments.sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    const order = typeof x === "string" ? x.localeCompare(y) : x - y;
    return (state.down ? -order : order) || b.segment[AREA] - a.segment[AREA];
  });
  const head = element("tr");
  for (const [key, title] of columns) {
    const button = element("button", { className: "plain", textContent: title });
    button.addEventListener("click", () => {
      state.down = state.column === key ? !state.down : ["iou", "area", "score"].includes(key);
      state.column = key;
      showTable();
    });
    const cell = element("th", {}, button);
    if (key === state.column) cell.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    head.append(cell);
  }
  const body = element("tbody");
  for (const s of all ? segments : segments.slice(0, MOST_ROWS)) body.append(tableRow(s, scored));
  part("segments").replaceChildren(element("thead", {}, head), body);
  const hidden = all ? 0 : Math.max(0, segments.length - MOST_ROWS);
  part("more").hidden = !hidden;
  part("more").textContent = `Show ${count(hidden)} more`;
  const total = image.truth.rows.length + image.prediction.rows.length;
  part("tally").textContent = segments.length === total ? count(total) : `${count(segments.length)} of ${count(total)}`;
  markRows();
}

function tableRow({ side, row, segment }, scored) {
  const error = data.errors[segment[ERROR]], image = state.image;
  const partner = segment[PARTNER] >= 0 ? image[other(side)].rows[segment[PARTNER]] : null;
  const cells = [
    element("td", {}, chip(rgb(image.colors[side][row])), data.classes[segment[CLASS]].name),
    element("td", { textContent: sideName(side) }),
    element("td", { textContent: segment[ID] }),
    element("td", { title: error.meaning }, chip(error.color), error.name),
    element("td", { textContent: partner ? iouText(segment[IOU]) : "–" }),
    element("td", { textContent: partner ? `${partner[ID]} · ${data.classes[partner[CLASS]].name}` : "–" }),
    element("td", { textContent: count(segment[AREA]) }),
  ];
  if (scored) cells.push(element("td", { textContent: side === "prediction" ? segment[SCORE].toFixed(3) : "" }));
  const line = element("tr", { tabIndex: 0 }, ...cells);
  Object.assign(line.dataset, { side, row });
  return line;
}

function markRows() {
  const rows = state.pin ? focusOfPin() : { truth: -1, prediction: -1 };
  for (const line of part("segments").querySelectorAll("tbody tr")) {
    line.setAttribute("aria-selected", String(Number(line.dataset.row) === rows[line.dataset.side]));
  }
}

// ---- the stage

async function show(place, named = false) {
  state.shown = place;
  state.hover = state.pin = null;
  part("tip").hidden = true;
  drawList(true);
  root.classList.toggle("empty", place < 0);
  if (place < 0) return;
  const [name, score, width, height] = data.images[place];
  if (named) history.replaceState(null, "", `#image=${encodeURIComponent(name)}`);
  part("title").textContent = `Image ${name}`;
  part("facts").textContent = `${width} × ${height} · ${data.figure} ${percent(score)}`;
  part("position").textContent = `${count(state.order.indexOf(place) + 1)} of ${count(state.order.length)}`;
  root.setAttribute("aria-busy", "true");
  let image;
  try {
    image = await load(place);
  } catch (error) {
    if (state.shown === place) failed(error);
    return;
  }
  if (state.shown !== place) return; // a faster click came in between
  state.image = image;
  look(1, 0.5, 0.5);
  part("failure").hidden = true;
  part("panels").hidden = false;
  for (const panel of part("panels").querySelectorAll(".picture")) {
    panel.style.aspectRatio = `${image.width} / ${image.height}`;
    const photo = panel.querySelector("img");
    photo.hidden = !image.photo;
    if (image.photo) photo.src = image.photo;
  }
  paint();
  showPin();
  showTable();
  root.setAttribute("aria-busy", "false");
  const at = state.order.indexOf(place);
  for (const near of [at + 1, at - 1]) if (near in state.order) load(state.order[near]).catch(() => {});
}

function failed(error) {
  state.image = null;
  part("panels").hidden = true;
  part("failure").hidden = false;
  part("failure").textContent = `This image cannot be shown. ${error.message}`;
  part("segments").replaceChildren();
  part("pinned").replaceChildren();
  root.setAttribute("aria-busy", "false");
}

function step(by) {
  const at = state.order.indexOf(state.shown) + by;
  if (at in state.order) show(state.order[at], true);
}

// ---- the list: filter, sort, draw what is in sight

function passes(image) {
  if (state.words && !String(image[NAME]).toLowerCase().includes(state.words)) return false;
  if (state.classOf < 0 && !state.errors.size) return true;
  const pairs = image[PAIRS];
  for (let k = 0; k < pairs.length; k += 3) {
    if ((state.classOf < 0 || pairs[k] === state.classOf) && (!state.errors.size || state.errors.has(pairs[k + 1]))) return true;
  }
  return false;
}

const compareNames = new Intl.Collator(undefined, { numeric: true }).compare;
const SORTS = {
  worst: (a, b) => (a[SCORED] ?? 2) - (b[SCORED] ?? 2),
  best: (a, b) => (b[SCORED] ?? -1) - (a[SCORED] ?? -1),
  name: (a, b) => compareNames(String(a[NAME]), String(b[NAME])),
};

function update() {
  const places = data.images.map((_, place) => place).filter((place) => passes(data.images[place]));
  const before = SORTS[state.sort];
  state.order = places.sort((a, b) => before(data.images[a], data.images[b]) || a - b);
  const all = data.images.length;
  part("count").textContent = places.length === all ? `${count(all)} image${all === 1 ? "" : "s"}` : `${count(places.length)} of ${count(all)} images`;
  part("reset").hidden = !state.words && state.classOf < 0 && !state.errors.size;
  for (const button of part("errors-filter").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(state.errors.has(Number(button.dataset.error))));
  }
  part("none").hidden = places.length > 0;
  if (!all) part("none").textContent = "This evaluation has no image.";
  if (state.order.includes(state.shown)) { // the same image, painted anew
    part("position").textContent = `${count(state.order.indexOf(state.shown) + 1)} of ${count(places.length)}`;
    drawList(true);
    if (state.image) { paint(); showTable(); }
  } else show(places.length ? state.order[0] : -1);
}

function drawList(reveal = false) {
  const list = part("list");
  part("spacer").style.height = `${state.order.length * ROW_HEIGHT}px`;
  const at = state.order.indexOf(state.shown);
  if (reveal && at >= 0) {
    const top = at * ROW_HEIGHT;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW_HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW_HEIGHT - list.clientHeight;
  }
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - 4);
  const last = Math.min(state.order.length, Math.ceil((list.scrollTop + (list.clientHeight || 600)) / ROW_HEIGHT) + 4);
  const rows = [];
  for (let k = first; k < last; k++) rows.push(listRow(state.order[k], k));
  part("spacer").replaceChildren(...rows);
  list.setAttribute("aria-activedescendant", at >= first && at < last ? `viewer-row-${state.shown}` : "");
}

function listRow(place, position) {
  const [name, score] = data.images[place];
  const bar = element("i");
  bar.style.width = `${100 * (score ?? 0)}%`;
  const row = element("div", { className: "row", id: `viewer-row-${place}` },
    element("span", { className: "name", textContent: name, title: name }),
    element("b", { textContent: percent(score) }), element("span", { className: "track" }, bar));
  row.setAttribute("role", "option");
  row.setAttribute("aria-selected", String(place === state.shown));
  row.setAttribute("aria-posinset", position + 1);
  row.setAttribute("aria-setsize", state.order.length);
  row.dataset.place = place;
  row.style.top = `${position * ROW_HEIGHT}px`;
  return row;
}

// ---- mouse, keys, and the controls

function under(event, kind) { // what lies under the mouse: {side, row, partner, sides}
  const image = state.image, canvas = part(kind).querySelector("canvas");
  const box = canvas.getBoundingClientRect();
  const x = Math.floor((event.clientX - box.left) / box.width * image.width);
  const y = Math.floor((event.clientY - box.top) / box.height * image.height);
  if (x < 0 || y < 0 || x >= image.width || y >= image.height) return null;
  const rowAt = (side) => image[side].map[y * image.width + x] - 1;
  if (kind !== "errors") return { side: kind, row: rowAt(kind), sides: [{ side: kind, row: rowAt(kind) }] };
  const sides = SIDES.map((side) => ({ side, row: rowAt(side) }));
  const side = sides[0].row >= 0 ? "truth" : "prediction";
  return { side, row: rowAt(side), partner: rowAt(other(side)), sides };
}

for (const kind of [...SIDES, "errors"]) {
  const picture = part(kind).querySelector(".picture");
  let before = "", drag = null;
  picture.addEventListener("pointerdown", (event) => { drag = { x: event.clientX, y: event.clientY, from: state.at, moved: false }; });
  picture.addEventListener("pointermove", (event) => {
    if (!state.image) return;
    if (drag && event.buttons === 1 && state.at.zoom > 1) {
      const box = picture.getBoundingClientRect();
      const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
      if (Math.hypot(dx, dy) > 4) { drag.moved = true; picture.setPointerCapture(event.pointerId); }
      if (drag.moved) look(state.at.zoom, drag.from.x - dx / box.width / state.at.zoom, drag.from.y - dy / box.height / state.at.zoom);
    }
    if (event.pointerType === "touch") return;
    const at = under(event, kind);
    const key = at ? JSON.stringify(at.sides) : "";
    state.hover = at && at.sides.some((s) => s.row >= 0) ? at : null;
    showTip(event, state.hover);
    if (key !== before) paint();
    before = key;
  });
  picture.addEventListener("pointerleave", () => { before = ""; state.hover = null; part("tip").hidden = true; paint(); });
  picture.addEventListener("click", (event) => { 
    if (!state.image || drag?.moved) return;
    const at = under(event, kind);
    pin(at);
    if (event.pointerType === "touch") showTip(event, state.pin && at); // a finger does not hover
  });
  picture.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
    event.preventDefault();
    const box = picture.getBoundingClientRect();
    lookInto(2 ** (-event.deltaY / 120), (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  }, { passive: false });
}

document.addEventListener("scroll", () => { part("tip").hidden = true; }, { passive: true });

part("segments").addEventListener("pointerover", (event) => {
  const line = event.target.closest("tbody tr");
  state.hover = line ? { side: line.dataset.side, row: Number(line.dataset.row) } : null;
  paint();
});
part("segments").addEventListener("pointerleave", () => { state.hover = null; paint(); });
part("segments").addEventListener("click", (event) => {
  const line = event.target.closest("tbody tr");
  if (line) pin({ side: line.dataset.side, row: Number(line.dataset.row) });
});
part("more").addEventListener("click", () => showTable(true));

part("list").addEventListener("scroll", () => drawList());
part("list").addEventListener("click", (event) => {
  const row = event.target.closest("[role=option]");
  if (row) show(Number(row.dataset.place), true);
});
new ResizeObserver(() => drawList()).observe(part("list"));

function onKey(event) {
  const typing = event.target.matches("input, select, textarea");
  if (event.key === "Escape") pin(null);
  else if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  else if (event.key === "+") lookInto(1.5);
  else if (event.key === "-") lookInto(1 / 1.5);
  else if (event.key === "0") look(1);
  else if (event.key === "ArrowRight") step(1);
  else if (event.key === "ArrowLeft") step(-1);
  else if (["ArrowDown", "ArrowUp"].includes(event.key) && event.target === part("list")) step(event.key === "ArrowDown" ? 1 : -1);
  else if (event.key === "Enter" && event.target.matches("tbody tr")) event.target.click();
  else return;
  event.preventDefault();
}
root.addEventListener("keydown", onKey);
document.addEventListener("keydown", (event) => { if (event.target === document.body) onKey(event); });

part("larger").addEventListener("click", () => lookInto(1.5));
part("smaller").addEventListener("click", () => lookInto(1 / 1.5));
part("zoom").addEventListener("click", () => look(1));
// The address names the image, so that it can be kept and passed on: page.html#image=ID
function showAddressed() {
  const name = location.hash.startsWith("#image=") ? decodeURIComponent(location.hash.slice(7)) : null;
  const place = data.images.findIndex((image) => String(image[NAME]) === name);
  if (place < 0) return false;
  if (place !== state.shown) show(place);
  return true;
}
window.addEventListener("hashchange", showAddressed);

part("previous").addEventListener("click", () => step(-1));
part("next").addEventListener("click", () => step(1));
part("search").addEventListener("input", (event) => { state.words = event.target.value.trim().toLowerCase(); update(); });
part("sort").addEventListener("change", (event) => { state.sort = event.target.value; update(); });
part("class").addEventListener("change", (event) => { state.classOf = Number(event.target.value); update(); });
part("opacity").addEventListener("input", (event) => { state.opacity = Number(event.target.value) / 100; paint(); });
part("view").addEventListener("change", (event) => { part("panels").dataset.view = event.target.value; });
part("reset").addEventListener("click", () => choose({}));

// Set the filters from outside (classes, bars of the errors, pairs of classes) or, with nothing, from the reset button.
function choose({ errors = [], classOf = -1 }) {
  state.errors = new Set(errors);
  Object.assign(state, { classOf, words: "" });
  part("search").value = "";
  part("class").value = String(classOf);
  update();
}
for (const link of document.querySelectorAll("[data-choose-errors], [data-choose-class]")) {
  link.addEventListener("click", () => {
    const names = (link.dataset.chooseErrors || "").split(" ");
    const errors = data.errors.map((_, index) => index).filter((index) => names.includes(data.errors[index].key));
    choose({ errors, classOf: data.classes.findIndex((c) => c.name === link.dataset.chooseClass) });
    root.scrollIntoView({ behavior: "smooth", block: "start" });
  });
}

// Filters offer only what occurs, with the number of images.
const imagesOf = { class: new Map(), error: new Map() };
for (const image of data.images) {
  for (const [key, offset] of [["class", 0], ["error", 1]]) {
    const here = new Set(image[PAIRS].filter((_, k) => k % 3 === offset));
    for (const value of here) imagesOf[key].set(value, (imagesOf[key].get(value) || 0) + 1);
  }
}
data.classes.map((c, index) => [c.name, index]).filter(([, index]) => imagesOf.class.has(index))
  .sort(([a], [b]) => compareNames(a, b))
  .forEach(([name, index]) => part("class").append(element("option", { value: index, textContent: `${name} (${count(imagesOf.class.get(index))})` })));
data.errors.forEach((error, index) => {
  if (!imagesOf.error.has(index)) return;
  const button = element("button", { title: error.meaning }, chip(error.color), error.name,
    element("small", { textContent: count(imagesOf.error.get(index)) }));
  button.dataset.error = index;
  button.addEventListener("click", () => {
    if (!state.errors.delete(index)) state.errors.add(index);
    update();
  });
  part("errors-filter").append(button);
});
update();
if (showAddressed()) root.scrollIntoView();
