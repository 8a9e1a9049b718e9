// Charts that are saved as SVG or PNG, made in the page. No library, no network.

const SVG = "http" + "://www.w3.org/2000/svg"; // a name space, not an address
function svg(name, attributes, parent) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (parent) parent.append(element);
  return element;
}

function html(name, parent, text) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

// Two buttons in a card. `chart()` gives what is saved: picture (an SVG element with width and height), title, and
// keys ([name, color] of each line or dot, empty where the title says it all).
function addSaves(card, chart) {
  const saves = html("div", card);
  saves.className = "saves";
  for (const kind of ["SVG", "PNG"]) {
    const button = html("button", saves, kind);
    button.title = `Save this chart as ${kind}`;
    button.addEventListener("click", () => save(withTitle(card, chart()), chart().title, kind));
  }
}

const KEPT_STYLES = ["fill", "stroke", "stroke-width", "opacity", "font-family", "font-size", "font-weight", "text-anchor"];

// A copy of an SVG of the page that needs no style sheet: what the sheet says becomes attributes.
function standalone(picture) {
  const copy = picture.cloneNode(true), copies = copy.querySelectorAll("*");
  picture.querySelectorAll("*").forEach((element, index) => {
    const style = getComputedStyle(element);
    for (const name of KEPT_STYLES) copies[index].setAttribute(name, style.getPropertyValue(name));
  });
  copy.setAttribute("width", picture.clientWidth);
  copy.setAttribute("height", picture.clientHeight);
  return copy;
}

// The boxes and texts of an HTML card as SVG, each where the page shows it.
function drawn(card) {
  const frame = card.getBoundingClientRect();
  const picture = svg("svg", { width: frame.width, height: frame.height });
  for (const element of card.querySelectorAll("*:not(.saves, .saves *)")) {
    const style = getComputedStyle(element), box = element.getBoundingClientRect();
    const x = box.left - frame.left, y = box.top - frame.top;
    const rx = Math.min(parseFloat(style.borderTopLeftRadius) || 0, box.width / 2, box.height / 2);
    const round = style.borderTopLeftRadius.endsWith("%") ? box.width / 2 : rx;
    if (style.backgroundColor !== "rgba(0, 0, 0, 0)") svg("rect", { x, y, width: box.width, height: box.height, rx: round,
      fill: style.backgroundColor, opacity: style.opacity }, picture);
    else if (parseFloat(style.borderLeftWidth)) svg("rect", { x, y, width: 1, height: box.height, fill: style.borderLeftColor }, picture);
    else if (parseFloat(style.borderTopWidth)) svg("rect", { x, y, width: box.width, height: 1, fill: style.borderTopColor }, picture);
    for (const node of element.childNodes) if (node.nodeType === Node.TEXT_NODE && node.data.trim()) {
      const range = document.createRange();
      range.selectNodeContents(node);
      const place = range.getBoundingClientRect(), size = parseFloat(style.fontSize);
      svg("text", { x: place.left - frame.left, y: (place.top + place.bottom) / 2 - frame.top + size * 0.35, fill: style.color,
        "font-family": style.fontFamily, "font-size": style.fontSize, "font-weight": style.fontWeight }, picture).textContent = node.data.trim();
    }
  }
  return picture;
}

// The picture on the ground of its card, its title above and the names of its colours below.
function withTitle(card, { picture, title, keys }) {
  const style = getComputedStyle(card), above = 30, row = 20, size = (name) => +picture.getAttribute(name);
  const width = Math.ceil(size("width")), height = Math.ceil(size("height")) + above + row * keys.length + (keys.length ? 8 : 0);
  const whole = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "font-family": style.fontFamily });
  svg("rect", { width, height, fill: style.backgroundColor }, whole);
  svg("text", { x: 14, y: 22, fill: style.color, "font-size": "15px", "font-weight": 600 }, whole).textContent = title;
  picture.setAttribute("y", above);
  whole.append(picture);
  keys.forEach(([name, color], index) => {
    const y = above + size("height") + row * (index + 0.5);
    svg("circle", { cx: 20, cy: y, r: 5, fill: color }, whole);
    svg("text", { x: 32, y: y + 4, fill: style.color, "font-size": "12px" }, whole).textContent = name;
  });
  return whole;
}

function save(whole, title, kind) {
  const text = new XMLSerializer().serializeToString(whole);
  const name = `${title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "_").replace(/^_+|_+$/g, "") || "chart"}.${kind.toLowerCase()}`;
  if (kind === "SVG") return offer(new Blob([text], { type: "image/svg+xml" }), name);
  const image = new Image(), times = 3; // pixels of the PNG for each of the page
  image.onload = () => {
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width: times * whole.getAttribute("width"), height: times * whole.getAttribute("height") });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((png) => offer(png, name), "image/png");
  };
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`; // a blob would taint the canvas in some browsers
}

function offer(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
