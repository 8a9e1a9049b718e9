// Line charts as SVG, of the functions in save.js.

// 1, 2 or 5 times a power of ten, so that about `count` steps cover `span`
function niceStep(span, count) {
  const raw = span / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  return power * [1, 2, 5, 10].find((f) => f * power >= raw * 0.999);
}

const grouped = (text) => text.replace(/\B(?=(\d{3})+$)/g, "\u202f");

// A number as a person writes it, to about three digits, or to the digits that `step` has (axis labels)
function figure(value, step) {
  const size = Math.abs(value);
  if (size !== 0 && size < 0.001) return String(+value.toPrecision(2)).replace("-", "−");
  if (step) return step >= 1 ? grouped(value.toFixed(0)) : value.toFixed(Math.min(6, Math.ceil(-Math.log10(step) - 1e-9)));
  return size >= 1000 ? grouped(value.toFixed(0)) : String(+value.toPrecision(3));
}

function drawChart(chart, place) {
  const card = html("section", place);
  card.className = chart.main ? "chart main card" : "chart card";
  const heading = html("h3", card, chart.title + (chart.unit ? `, ${chart.unit}` : ""));
  const keys = html("div", card);
  keys.className = "keys";
  const hidden = new Set();
  const number = (index) => (chart.series[index].color ?? index) % 8; // lines may share a colour
  const color = (index) => `var(--c${number(index)})`;
  const picture = svg("svg", { role: "img", "aria-label": chart.title }, card);
  addSaves(card, () => ({ picture: standalone(picture), title: heading.textContent, keys: shownKeys() }));
  const tip = html("div", card);
  tip.className = "tip";
  tip.hidden = true;

  if (chart.series.length > 1) {
    chart.series.forEach((series, index) => {
      const key = html("button", keys);
      html("i", key).style.background = color(index);
      key.append(series.name);
      key.setAttribute("aria-pressed", "true");
      key.addEventListener("click", () => {
        if (!hidden.delete(index)) hidden.add(index);
        key.setAttribute("aria-pressed", String(!hidden.has(index)));
        draw();
      });
    });
  }

  function shownKeys() {
    const rows = chart.series.map((series, index) => [series.name, getComputedStyle(card).getPropertyValue(`--c${number(index)}`)]);
    return rows.length > 1 ? rows.filter((_, index) => !hidden.has(index)) : [];
  }

  let scale;
  function draw() {
    picture.replaceChildren();
    const width = picture.clientWidth, height = picture.clientHeight;
    const right = 12, top = 10, bottom = 24;
    const shown = chart.series.map((series, index) => ({ ...series, index })).filter((s) => !hidden.has(s.index));
    const points = shown.flatMap((s) => s.points.filter((p) => p[1] !== null));
    if (!points.length || width < 80) return;
    const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
    const percent = chart.unit === "%";
    let low = Math.min(percent ? 100 : 0, ...ys), high = percent ? 100 : Math.max(...ys) * 1.04;
    if (!percent) { // a single early peak must not flatten the rest of the curve
      const sorted = [...ys].sort((a, b) => a - b);
      high = Math.min(high, 2.5 * sorted[Math.floor(0.97 * (sorted.length - 1))] || high);
    } else low = Math.max(0, low - 5);
    const step = niceStep(high - low, 4);
    low = Math.floor(low / step) * step;
    high = Math.ceil(high / step - 1e-6) * step;
    if (percent) high = 100;
    const marks = [];
    for (let v = low; v <= high + step / 1e6; v += step) marks.push([v, figure(+v.toPrecision(9), step)]);
    const left = Math.max(46, 18 + 6.6 * Math.max(...marks.map(([, text]) => text.length))); // the widest number fits
    const first = Math.min(...xs), last = Math.max(...xs);
    const x = (v) => left + (last > first ? (v - first) / (last - first) : 0.5) * (width - left - right);
    const y = (v) => height - bottom - (v - low) / (high - low || 1) * (height - top - bottom);
    for (const [v, text] of marks) {
      svg("line", { class: "grid", x1: left, x2: width - right, y1: y(v), y2: y(v) }, picture);
      svg("text", { x: left - 8, y: y(v) + 4, "text-anchor": "end" }, picture).textContent = text;
    }
    const stride = Math.max(1, niceStep(last - first, width / 110));
    for (let v = Math.ceil(first / stride) * stride; v <= last; v += stride) {
      svg("text", { x: x(v), y: height - 6, "text-anchor": "middle" }, picture).textContent = figure(v, stride);
    }
    const clip = `clip${Math.random().toString(36).slice(2)}`;
    svg("rect", { x: left - 4, y: top - 4, width: width - left - right + 8, height: height - top - bottom + 8 },
      svg("clipPath", { id: clip }, picture));
    const lines = svg("g", { "clip-path": `url(#${clip})`, fill: "none", "stroke-linejoin": "round" }, picture);
    for (const series of [...shown].reverse()) {
      const path = (values) => values.reduce(([text, pen], [step, value]) =>
        value === null ? [text, false] : [text + (pen ? "L" : "M") + x(step).toFixed(1) + " " + y(value).toFixed(1), true],
      ["", false])[0];
      const noisy = !percent && series.points.length > 24;
      svg("path", { d: path(series.points), stroke: color(series.index), "stroke-width": noisy ? 1 : 2,
        opacity: noisy ? 0.35 : 1 }, lines);
      if (noisy) svg("path", { d: path(smooth(series.points)), stroke: color(series.index), "stroke-width": 2 }, lines);
      if (series.points.length <= 24) {
        for (const [step, value] of series.points) {
          if (value !== null) svg("circle", { cx: x(step), cy: y(value), r: 3, fill: color(series.index) }, lines);
        }
      }
    }
    scale = { x, y, shown, first, last, left, right, width, height, top, bottom,
      steps: [...new Set(xs)].sort((a, b) => a - b) };
  }

  const cursor = svg("line", { class: "grid" });
  picture.addEventListener("pointermove", (event) => {
    if (!scale) return;
    const box = picture.getBoundingClientRect(), outer = card.getBoundingClientRect();
    const mouse = event.clientX - box.left;
    const step = scale.steps.reduce((a, b) => Math.abs(scale.x(b) - mouse) < Math.abs(scale.x(a) - mouse) ? b : a);
    for (const [key, value] of Object.entries(
      { x1: scale.x(step), x2: scale.x(step), y1: scale.top, y2: scale.height - scale.bottom })) cursor.setAttribute(key, value);
    picture.append(cursor);
    tip.replaceChildren();
    html("div", tip, `step ${figure(step, 1)}`);
    for (const series of scale.shown) {
      const point = series.points.find((p) => p[0] === step);
      if (!point || point[1] === null) continue;
      const line = html("div", tip);
      html("i", line).style.background = color(series.index);
      line.append(`${series.name}: ${chart.unit === "%" ? point[1].toFixed(1) : figure(point[1])}`);
    }
    tip.hidden = false;
    const at = box.left - outer.left + scale.x(step);
    const flip = at + tip.offsetWidth + 24 > outer.width;
    tip.style.left = `${Math.max(4, flip ? at - tip.offsetWidth - 12 : at + 12)}px`;
    tip.style.top = `${box.top - outer.top + 14}px`;
  });
  picture.addEventListener("pointerleave", () => { tip.hidden = true; cursor.remove(); });
  new ResizeObserver(draw).observe(picture);
}

// mean over a window around each point, which shrinks towards both ends: the line neither lags nor leads
function smooth(points) {
  const reach = Math.max(1, Math.round(points.length / 30));
  return points.map(([step, value], index) => {
    if (value === null) return [step, null];
    const side = Math.min(reach, index, points.length - 1 - index);
    const near = points.slice(index - side, index + side + 1).map((p) => p[1]).filter((v) => v !== null);
    return [step, near.reduce((a, b) => a + b) / near.length];
  });
}

const charts = JSON.parse(document.getElementById("chart-data").textContent);
if (charts.length) {
  const section = document.getElementById("curves");
  section.hidden = false;
  for (const chart of charts) drawChart(chart, section.querySelector(".charts"));
}
