const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const MOST = 500; // rows of a list; the filter finds the others

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") element.onclick = value;
    else if (value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

const picture = (place) => make("img", { src: data.images[place].uri, alt: data.images[place].id, loading: "lazy" });
const isRight = (image, text) => data.images[image].group === data.texts[text].group;
const quoted = (text) => (text.trim() ? `“${text}”` : "(an empty text)");
const score = (value) => value.toFixed(3);

// The texts that can be chosen, and for each image the right texts that the page knows.
const searchable = Object.keys(data.texts).filter((text) => data.texts[text].near);
const textsOf = new Map();
for (const [place, text] of Object.entries(data.texts)) {
  textsOf.set(text.group, [...(textsOf.get(text.group) ?? []), place]);
}
const named = (image) => (textsOf.get(data.images[image].group) ?? []).map((text) => data.texts[text].text);

// How many of an image's nearest texts come before the first right one.
const imageRank = (image) => {
  const rank = data.images[image].near.findIndex(([text]) => isRight(image, text));
  return rank < 0 ? data.images[image].near.length : rank;
};

// --- results ----------------------------------------------------------------------------------------------------------
function figure(image, text, caption) {
  const right = isRight(image, text);
  const names = named(image).join(", ") || data.images[image].id;
  return make("figure", { class: right ? "right" : "wrong-one" },
    make("button", { type: "button", title: data.images[image].id, onclick: () => choose("image", image) }, picture(image)),
    make("figcaption", {}, make("b", {}, `${caption}${right ? " ✓" : ""}`), names));
}

function showText(place) {
  const text = data.texts[place], near = make("div", { class: "near" });
  near.append(...text.near.map(([image, value]) => figure(image, place, score(value))));
  const verdict = text.right === null ? "no image of the set is right for it"
    : text.rank === 1 ? `of ${data.total} images, the nearest is right` : `its first right image is at rank ${text.rank} of ${data.total}`;
  byId("result").replaceChildren(make("h3", {}, quoted(text.text)), make("p", { class: "verdict" }, verdict), near);
  if (text.right !== null && text.rank > text.near.length) {
    const later = make("div", { class: "near" }, figure(text.right, place, `rank ${text.rank}`));
    byId("result").append(make("p", { class: "later" }, "a right one"), later);
  }
}

function showImage(place) {
  const image = data.images[place], rows = make("tbody");
  image.near.forEach(([text, value], rank) => {
    const string = quoted(data.texts[text].text), right = isRight(place, text);
    const cell = data.texts[text].near
      ? make("button", { type: "button", onclick: () => choose("text", text) }, string) : string;
    rows.append(make("tr", right ? { class: "right" } : {},
      make("td", {}, String(rank + 1)), make("td", {}, cell, right ? " ✓" : ""), make("td", { class: "score" }, score(value))));
  });
  const head = make("thead", {}, make("tr", {}, make("th", { class: "number" }, "rank"), make("th", {}, "text"), make("th", { class: "number" }, "similarity")));
  const names = named(place).map(quoted).join(", ");
  const title = make("div", {}, make("h3", {}, image.id), make("p", {}, names ? `right: ${names}` : ""));
  byId("result").replaceChildren(
    make("div", { class: "query" }, picture(place), title),
    make("div", { class: "scroll" }, make("table", {}, head, rows)));
}

// --- choosing ---------------------------------------------------------------------------------------------------------
let kind = "text", chosen = null;

function choose(what, place, move = true) {
  if (what !== kind) { kind = what; list(); }
  chosen = `${what}-${place}`;
  (what === "text" ? showText : showImage)(place);
  for (const button of document.querySelectorAll(".list button")) {
    button.setAttribute("aria-pressed", `${kind}-${button.dataset.place}` === chosen);
  }
  if (move) history.replaceState(null, "", `#${what}-${place}`);
}

function list() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean), hardest = byId("hardest").checked;
  const matches = (text) => words.every((word) => text.toLowerCase().includes(word));
  byId("by-text").setAttribute("aria-pressed", kind === "text");
  byId("by-image").setAttribute("aria-pressed", kind === "image");
  byId("texts").hidden = kind !== "text";
  byId("images").hidden = kind !== "image";
  const all = kind === "text" ? searchable : Object.keys(data.images);
  const found = all.filter((place) => matches(kind === "text" ? data.texts[place].text : [data.images[place].id, ...named(place)].join(" ")));
  if (hardest) {
    const rank = kind === "text" ? (place) => data.texts[place].rank : imageRank;
    found.sort((a, b) => rank(b) - rank(a));
  }
  const pressed = (place) => `${kind}-${place}` === chosen;
  const rows = found.slice(0, MOST).map((place) => kind === "text"
    ? make("li", {}, make("button", { type: "button", "data-place": place, "aria-pressed": pressed(place), onclick: () => choose("text", place) },
        quoted(data.texts[place].text), make("span", { class: "rank", title: "rank of the first right image" }, String(data.texts[place].rank))))
    : make("button", { type: "button", "data-place": place, "aria-pressed": pressed(place), title: named(place).join(", ") || data.images[place].id, onclick: () => choose("image", place) }, picture(place)));
  byId(kind === "text" ? "texts" : "images").replaceChildren(...rows);
  byId("count").textContent = `${found.length} of ${all.length} ${kind === "text" ? "texts; beside each, the rank of its first right image" : "images"}`
    + (found.length > MOST ? `, the first ${MOST} listed` : "");
}

byId("filter").oninput = list;
byId("hardest").onchange = list;
byId("by-text").onclick = () => { kind = "text"; list(); };
byId("by-image").onclick = () => { kind = "image"; list(); };
for (const button of document.querySelectorAll("[data-image]")) {
  button.onclick = () => { choose("image", button.dataset.image); byId("result").scrollIntoView({ block: "center" }); };
}

list();
const [, what, place] = location.hash.match(/^#(text|image)-(\d+)$/) ?? [];
if (what && data[`${what}s`][place] && data[`${what}s`][place].near) choose(what, place, false);
else if (searchable.length) choose("text", searchable[0], false);
else choose("image", Object.keys(data.images)[0], false);
