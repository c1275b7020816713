const data = JSON.parse(document.getElementById("data").textContent);
const NAMES = {blind: "without image", swapped: "another's image"};
const scores = data.examples.map(example => example.score);
const [least, most] = [Math.min(...scores), Math.max(...scores)];
const list = document.getElementById("examples"), count = document.getElementById("count");
const filter = document.getElementById("filter"), which = document.getElementById("which"), kind = document.getElementById("kind");
let order = "worst";

function element(tag, text, name) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}

function answer(dl, title, text, score, name) {
  dl.append(element("dt", title));
  const said = element("dd", text || "(nothing)", name);
  if (score !== undefined) said.append(" ", element("span", score.toPrecision(3)));
  dl.append(said);
}

const articles = data.examples.map(example => {
  const made = element("article"), image = element("img"), dl = element("dl");
  const share = most > least ? (example.score - least) / (most - least) : 1;
  made.style.setProperty("--mark", `color-mix(in srgb, var(--best) ${Math.round(100 * share)}%, var(--bad))`);
  image.src = example.image;
  image.alt = example.id;
  image.loading = "lazy";
  answer(dl, "answer", example.answer, example.score, "answer");
  answer(dl, "truth", example.truth);
  for (const name of data.conditions) if (example[name]) answer(dl, NAMES[name], example[name].answer, example[name].score);
  made.append(image, element("h3", example.question || example.id), element("p", [example.type, example.id].filter(Boolean).join(" · "), "note"), dl);
  return made;
});
const words = data.examples.map(example =>
  [example.id, example.type, example.question, example.answer, example.truth, ...data.conditions.map(name => example[name]?.answer ?? "")].join(" ").toLowerCase());
const lost = example => example.blind ? example.score - example.blind.score : -Infinity;

function fits(example, i) {
  if (kind && kind.value && example.type !== kind.value) return false;
  if (which && which.value) {
    if (!example.blind) return false;
    const drop = lost(example);
    if (which.value === "same" ? drop !== 0 : which.value === "better" ? drop >= 0 : drop <= 0) return false;
  }
  return filter.value.toLowerCase().split(/\s+/).every(word => words[i].includes(word));
}

function show() {
  const rows = data.examples.map((_, i) => i).filter(i => fits(data.examples[i], i));
  const keys = {worst: i => data.examples[i].score, best: i => -data.examples[i].score, drop: i => -lost(data.examples[i])};
  rows.sort((a, b) => keys[order](a) - keys[order](b) || a - b);
  list.replaceChildren(...rows.map(i => articles[i]));
  count.textContent = `${rows.length} of ${data.examples.length} examples`;
}

for (const button of document.querySelectorAll("[data-order]")) {
  button.onclick = () => {
    order = button.dataset.order;
    for (const other of document.querySelectorAll("[data-order]")) other.setAttribute("aria-pressed", other === button);
    show();
  };
}
for (const input of [filter, which, kind]) if (input) input.oninput = show;
show();
