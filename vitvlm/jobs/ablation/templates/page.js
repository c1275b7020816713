const data = JSON.parse(document.getElementById("data").textContent);
const colour = (place) => `var(--s${place % 8})`;

// --- the table sorts by the column whose heading is clicked; rows without a number stay last -----------------------
const table = document.getElementById("results");
table.tHead.querySelectorAll("th").forEach((heading, column) => {
  heading.firstElementChild.onclick = () => {
    const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    table.tHead.querySelectorAll("th").forEach((other) => other.setAttribute("aria-sort", "none"));
    heading.setAttribute("aria-sort", direction);
    const key = (row) => {
      const cell = row.cells[column].dataset.sort;
      return cell === undefined ? Infinity : (direction === "ascending" ? 1 : -1) * Number(cell);
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => key(a) - key(b) || 0));
  };
});

// --- drawing ----------------------------------------------------------------------------------------------------------
const HEIGHT = 360, LEFT = 64, RIGHT = 20, TOP = 30, BOTTOM = 48;

function draw(parent, name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

function label(value) {
  const size = Math.abs(value);
  for (const [unit, letter] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (size >= unit) return `${+(value / (letter === "k" ? 1e3 : unit)).toPrecision(3)} ${letter}`;
  }
  return String(+value.toPrecision(3));
}

function niceTicks(low, high, log) {
  if (log) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++) {
      for (const factor of [1, 2, 5]) ticks.push(factor * 10 ** power);
    }
    const shown = ticks.filter((tick) => tick >= low && tick <= high);
    return shown.length > 1 ? shown : [low, high];
  }
  const rough = (high - low) / 5 || 1;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * unit).find((candidate) => candidate >= rough);
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step) ticks.push(+tick.toPrecision(12));
  return ticks;
}

function scale(values, from, to, log) {
  let low = Math.min(...values), high = Math.max(...values);
  if (log) { low /= 1.15; high *= 1.15; }
  else {
    const margin = (high - low || Math.abs(high) || 1) * 0.08;
    low -= low >= 0 && low - margin < 0 ? low : margin;
    high += margin;
  }
  const place = log ? Math.log : (value) => value;
  const at = (value) => from + ((place(value) - place(low)) / (place(high) - place(low))) * (to - from);
  return { at, ticks: niceTicks(low, high, log) };
}

function swatch(parent, kind, place, name) {
  const element = document.createElement(kind), line = document.createElement("i");
  line.style.color = colour(place);
  element.append(line, name);
  parent.append(element);
  return element;
}

// series: {colour, points: [{x, y, low, high, name}], dots}; logs: which axes are logarithmic; xTicks: instead of round
// numbers; names: whether the points' names stand above the drawing
function chart(holder, series, { xLabel, yLabel, logs, xTicks, names }) {
  holder.replaceChildren();
  const points = series.flatMap((one) => one.points);
  if (!points.length) { holder.textContent = "nothing to show yet"; return; }
  const width = Math.max(holder.clientWidth - 12, 280), right = width - RIGHT, bottom = HEIGHT - BOTTOM;
  const svg = draw(holder, "svg", { width, height: HEIGHT });
  const x = scale(points.map((p) => p.x), LEFT, right, logs.x);
  const y = scale(points.flatMap((p) => [p.y, p.low ?? p.y, p.high ?? p.y]), bottom, TOP, logs.y);
  for (const tick of y.ticks) {
    draw(svg, "line", { class: "grid", x1: LEFT, x2: right, y1: y.at(tick), y2: y.at(tick) });
    draw(svg, "text", { class: "tick", x: LEFT - 8, y: y.at(tick) + 4, "text-anchor": "end" }, label(tick));
  }
  let free = -Infinity;
  for (const tick of xTicks ?? x.ticks) {
    draw(svg, "line", { class: "axis", x1: x.at(tick), x2: x.at(tick), y1: bottom, y2: bottom + 5 });
    if (x.at(tick) < free) continue;
    const text = draw(svg, "text", { class: "tick", x: x.at(tick), y: bottom + 19, "text-anchor": "middle" }, label(tick));
    free = x.at(tick) + text.getComputedTextLength() + 6;
  }
  draw(svg, "line", { class: "axis", x1: LEFT, x2: right, y1: bottom, y2: bottom });
  draw(svg, "text", { x: (LEFT + right) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, xLabel);
  draw(svg, "text", { "text-anchor": "middle", transform: `translate(14 ${(TOP + bottom) / 2}) rotate(-90)` }, yLabel);
  for (const one of series) {
    const path = one.points.map((p) => `${x.at(p.x)},${y.at(p.y)}`).join(" ");
    draw(svg, "polyline", { points: path, fill: "none", stroke: one.colour, "stroke-width": 1.8, "stroke-linejoin": "round" });
    if (!one.dots) continue;
    for (const p of one.points) {
      const px = x.at(p.x), group = draw(svg, "g", {});
      draw(group, "title", {}, `${p.name}: ${label(p.y)}${p.low != null ? ` [${label(p.low)}, ${label(p.high)}]` : ""}`);
      if (p.low != null) {
        const low = y.at(p.low), high = y.at(p.high);
        draw(group, "path", { d: `M${px} ${low}V${high}M${px - 5} ${low}h10M${px - 5} ${high}h10`, stroke: one.colour, "stroke-width": 1.4 });
      }
      draw(group, "circle", { cx: px, cy: y.at(p.y), r: 4.5, fill: one.colour });
    }
  }
  if (names) nameColumns(svg, new Map(points.map((p) => [p.name, x.at(p.x)])), right, bottom);
}

// Each name stands above its points, in the first of two lines that has room, with a line down to them.
function nameColumns(svg, places, right, bottom) {
  const free = [-Infinity, -Infinity];
  for (const [name, px] of [...places].sort((a, b) => a[1] - b[1])) {
    const text = draw(svg, "text", { class: "tick", "text-anchor": "middle" }, name);
    const half = text.getComputedTextLength() / 2, centre = Math.min(Math.max(px, LEFT + half), right + RIGHT - half);
    const line = free.findIndex((end) => centre - half > end + 8);
    if (line < 0) { text.remove(); continue; }
    free[line] = centre + half;
    text.setAttribute("x", centre);
    text.setAttribute("y", 11 + 13 * line);
    const guide = draw(svg, "line", { class: "grid", x1: px, x2: px, y1: TOP, y2: bottom, "stroke-dasharray": "2 4" });
    svg.prepend(guide);
  }
}

// --- compare ----------------------------------------------------------------------------------------------------------
const measures = [
  ...data.scores.map((score, place) => ({
    label: score.label,
    colour: colour(place),
    of: (row) => {
      const got = row.scores[place];
      const times = (value) => (value == null ? null : value * score.scale);
      return got && { y: times(got.estimate), low: times(got.low), high: times(got.high) };
    },
  })),
  ...data.costs.map((cost) => ({
    label: cost.unit ? `${cost.label} (${cost.unit})` : cost.label,
    cost: true,
    colour: colour(0),
    of: (row) => (row.costs[cost.key] == null ? null : { y: row.costs[cost.key] }),
  })),
];
const chosenY = document.getElementById("compare-y");
if (chosenY) {
  const chosenX = document.getElementById("compare-x"), log = document.getElementById("compare-log");
  const axes = [{ label: data.axis, of: (row) => ({ y: row.value }), value: true }, ...measures.filter((one) => one.cost)];
  if (data.scores.length > 1) chosenY.add(new Option("all scores", "all"));
  measures.forEach((one, place) => chosenY.add(new Option(one.label, place)));
  axes.forEach((one, place) => chosenX.add(new Option(one.label, place)));
  const legend = document.getElementById("compare-legend");
  const lines = [...new Set(data.rows.map((row) => row.line))];  // joined in the drawing
  if (lines.length > 1) chosenY.value = "0";
  const redraw = () => {
    const axis = axes[chosenX.value];
    const shown = chosenY.value === "all" ? measures.slice(0, data.scores.length) : [measures[chosenY.value]];
    const series = shown.flatMap((one) => lines.map((line, place) => ({
      colour: shown.length > 1 || lines.length < 2 ? one.colour : colour(place),
      dots: true,
      points: data.rows
        .filter((row) => row.line === line && one.of(row) && axis.of(row))
        .map((row) => ({ x: axis.of(row).y, name: row.name, ...one.of(row) }))
        .sort((a, b) => a.x - b.x),
    })));
    const values = series.flatMap((one) => one.points.map((p) => p.x));
    chart(document.getElementById("compare"), series, {
      xLabel: axis.label,
      yLabel: shown.length > 1 ? "score" : shown[0].label,
      logs: { x: log.checked && values.every((value) => value > 0) },
      xTicks: axis.value ? [...new Set(values)].sort((a, b) => a - b) : undefined,
      names: true,
    });
    legend.replaceChildren();
    const named = shown.length > 1 ? shown.map((one) => one.label) : lines.length > 1 ? lines : [];
    named.forEach((name, place) => swatch(legend, "span", place, name));
  };
  chosenY.onchange = redraw;
  chosenX.onchange = () => { log.checked = chosenX.value !== "0"; redraw(); };
  log.onchange = redraw;
  addEventListener("resize", redraw);
  redraw();
}

// --- training loss ----------------------------------------------------------------------------------------------------
{
  const hidden = new Set(), log = document.getElementById("curves-log");
  const stages = document.getElementById("stages"), legend = document.getElementById("legend");
  let stage = data.stages[0];
  const redraw = () => {
    const series = data.rows.map((row, place) => ({
      name: row.name,
      colour: colour(place),
      points: (row.curves[stage] ?? []).map(([x, y]) => ({ x, y })),
    }));
    const shown = series.filter((one) => !hidden.has(one.name));
    const positive = shown.every((one) => one.points.every((p) => p.y > 0));
    chart(document.getElementById("curves"), shown, { xLabel: "step", yLabel: "training loss", logs: { y: log.checked && positive } });
    for (const button of stages.children) button.setAttribute("aria-pressed", button.textContent === stage);
    for (const button of legend.children) button.setAttribute("aria-pressed", !hidden.has(button.dataset.name));
  };
  stages.hidden = data.stages.length < 2;
  for (const name of data.stages) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.onclick = () => { stage = name; redraw(); };
    stages.append(button);
  }
  data.rows.forEach((row, place) => {
    const button = swatch(legend, "button", place, row.name);
    button.type = "button";
    button.dataset.name = row.name;
    button.onclick = () => { hidden.has(row.name) ? hidden.delete(row.name) : hidden.add(row.name); redraw(); };
    legend.append(button);
  });
  log.onchange = redraw;
  redraw();
}
