const data = JSON.parse(document.getElementById("data").textContent);
const STEP = 120;
const list = document.getElementById("images"), count = document.getElementById("count"), more = document.getElementById("more");
const filter = document.getElementById("filter"), chosen = document.getElementById("class");
let order = data.classified ? "least" : "given", room = STEP, range = null;

function element(tag, text, name) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}

const percent = share => `${(100 * share).toFixed(1)} %`;
const sure = image => image.classes.length ? image.classes[0].share : 0;

function figure(image) {
  const made = element("figure"), caption = element("figcaption"), classes = element("ul");
  if (image.picture) {
    const picture = element("img");
    picture.src = image.picture;
    picture.alt = image.id;
    picture.loading = "lazy";
    made.append(picture);
  } else made.append(element("div", "no picture", "none"));
  for (const one of image.classes) {
    const row = element("li"), bar = element("i");
    bar.style.setProperty("--share", percent(one.share).replace(" ", ""));
    row.append(element("span", one.name), element("b", percent(one.share)), bar);
    classes.append(row);
  }
  if (image.classes.length) caption.append(classes);
  caption.append(element("h3", image.id));
  made.append(caption);
  return made;
}

const figures = new Map();
const words = data.images.map(image => [image.id, ...image.classes.slice(0, 1).map(one => one.name)].join(" ").toLowerCase());

function fits(image, i) {
  if (chosen && chosen.value && image.classes[0].name !== chosen.value) return false;
  if (range && (sure(image) < range[0] || (sure(image) >= range[1] && range[1] < 1))) return false;
  return filter.value.toLowerCase().split(/\s+/).every(word => words[i].includes(word));
}

function show() {
  const rows = data.images.map((_, i) => i).filter(i => fits(data.images[i], i));
  const keys = { least: i => sure(data.images[i]), most: i => -sure(data.images[i]), given: i => i };
  if (order === "name") rows.sort((a, b) => data.images[a].id < data.images[b].id ? -1 : 1);
  else rows.sort((a, b) => keys[order](a) - keys[order](b) || a - b);
  list.replaceChildren(...rows.slice(0, room).map(i => {
    if (!figures.has(i)) figures.set(i, figure(data.images[i]));
    return figures.get(i);
  }));
  more.hidden = rows.length <= room;
  count.textContent = `${rows.length} of ${data.images.length} images`;
}

function press(buttons, pressed) {
  for (const button of buttons) button.setAttribute("aria-pressed", button === pressed);
}

const orders = document.querySelectorAll("[data-order]"), bars = document.querySelectorAll("#bars button");
for (const button of orders) {
  button.onclick = () => {
    order = button.dataset.order;
    press(orders, button);
    show();
  };
}
for (const bar of bars) {
  bar.onclick = () => {
    const on = bar.getAttribute("aria-pressed") !== "true";
    range = on ? [Number(bar.dataset.low), Number(bar.dataset.high)] : null;
    press(bars, on ? bar : null);
    show();
  };
}
for (const input of [filter, chosen]) if (input) input.oninput = () => { room = STEP; show(); };
more.onclick = () => { room += STEP; show(); };
show();
