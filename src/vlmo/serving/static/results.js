// The grid of results or albums, and what stands around it.

import { show } from "./api.js";
import { $, make, percent } from "./dom.js";

const EAGER = 12; // images at the top are loaded at once
const [LEAST, MOST] = [0.6, 2.5]; // width by height of what is shown: the rest of narrower and wider images is cut
// Probability below which a name's best image stays in 2 % of the names that a gallery shows (docs/search.md).
const LIKELY = 0.19;
const MONTH = { month: "long", year: "numeric" };

export const titleOf = (hit) => hit.captions[0] || hit.name;
export const cards = () => [...$("grid").querySelectorAll(".card")];

export function clearGrid() {
  $("grid").replaceChildren();
  $("grid").classList.remove("no-match");
  delete $("grid").dataset.month;
}

// Adds cards of hits to the grid. With `byDate` a heading stands before the images of each month; with `marksUndated`
// a card says when an image has no date but that of its file. Without it, a line stands before those that are less likely.
export function addResults(hits, { onOpen, byDate, marksUndated }) {
  const numLikely = hits.findLastIndex(isLikely) + 1;
  for (const [number, hit] of hits.entries()) {
    if (!byDate && number === numLikely) addLine();
    const month = groupOf(hit.metadata);
    if (byDate && $("grid").dataset.month !== month) {
      if ($("grid").dataset.month) $("grid").append(make("li", { className: "rest", "aria-hidden": "true" }));
      $("grid").append(make("li", { className: "month" }, make("h2", {}, month)));
      $("grid").dataset.month = month;
    }
    const showsDate = byDate || (marksUndated && hit.metadata.taken_from === "file");
    const item = card(hit, { position: cards().length, onOpen, below: [title(hit), showsDate ? date(hit) : scores(hit)] });
    item.style.setProperty("--ratio", Math.min(Math.max(hit.width / hit.height, LEAST), MOST));
    $("grid").append(item);
  }
  if (!cards().length) $("grid").append(nothing());
}

export function showAlbums(albums, { onOpen }) {
  clearGrid();
  for (const album of albums) {
    const number = make("span", { className: "scores" }, `${album.count} image${album.count === 1 ? "" : "s"}`);
    $("grid").append(card({ id: album.id, name: album.name, captions: [] }, { position: cards().length, onOpen, below: [title(album), number] }));
  }
}

export function showMonths({ months, num_undated: undated }, { chosen, onChange }) {
  const options = months.map(({ name, count }) => make("option", { value: name }, `${monthOf(name)} (${count})`));
  if (undated) options.push(make("option", { value: "" }, `Date unknown (${undated})`));
  const select = $("months").querySelector("select");
  select.replaceChildren(...options);
  select.value = chosen?.slice(0, 7) ?? months[0]?.name ?? "";
  select.onchange = () => onChange(select.value);
}

export function showStatus(found, { seconds, more }) {
  const number = found.hits.length;
  const closer = found.num_reranked ? ` · the best ${found.num_reranked} reranked` : "";
  const before = found.no_match ? "No match · the nearest " : more ? "The first " : "";
  $("status").textContent = `${before}${number || "No"} image${number === 1 ? "" : "s"} in ${seconds.toFixed(2)} s${closer}`;
  $("grid").classList.toggle("no-match", found.no_match === true);
  $("note").hidden = !found.note;
  $("note").textContent = found.note || "";
}

export function showProblem(problem, { onRetry }) {
  const again = make("button", { type: "button", className: "second", onclick: onRetry }, "Try again");
  const worthIt = problem.status === 0 || problem.status >= 500;
  $("problem").replaceChildren(
    make("strong", {}, problem.message),
    ...(problem.hint ? [make("span", {}, problem.hint)] : []),
    ...(worthIt ? [make("div", {}, again)] : []),
  );
  $("problem").hidden = false;
}

export function clearProblem() {
  $("problem").hidden = true;
  $("problem").replaceChildren();
}

export function showSamples(hits, { onOpen }) {
  $("strip").replaceChildren(...hits.map((hit, position) => card(hit, { position, onOpen, below: [] })));
}

// Words in an image's own texts say what it shows; queries that are not words alone have no probability.
const isLikely = (hit) => hit.words !== null || hit.presence === null || hit.presence >= LIKELY;

function addLine() {
  if ($("grid").querySelector(".less-likely")) return;
  const text = cards().length ? "Less likely" : "Nothing here looks like this. The nearest:";
  $("grid").append(make("li", { className: "rest", "aria-hidden": "true" }));
  $("grid").append(make("li", { className: "less-likely" }, make("strong", {}, text)));
}

function card(hit, { position, onOpen, below }) {
  const image = make("img", { alt: below.length ? "" : titleOf(hit), width: 200, height: 200, loading: position < EAGER ? "eager" : "lazy", decoding: "async" });
  show(image, `/v1/thumbnails/${encodeURIComponent(hit.id)}`);
  const button = make(
    "button",
    { type: "button", className: "card", onclick: () => onOpen(hit) },
    make("span", { className: "frame" }, image),
    ...below,
  );
  button.dataset.id = hit.id;
  return make("li", {}, button);
}

const title = (hit) => make("span", { className: "what" }, hit.captions ? titleOf(hit) : hit.name);

const monthOf = (taken) => new Date(`${taken.slice(0, 7)}-01T00:00`).toLocaleDateString("en", MONTH);

// The month of an image, unless nothing but its file has a date, which may be that of a copy.
function groupOf({ taken, taken_from: source }) {
  if (!taken) return "Without a date";
  return source === "file" ? `Date unknown (file of ${monthOf(taken)})` : monthOf(taken);
}

export function dateOf({ taken, taken_from: source }) {
  const shown = (taken ?? "").slice(0, 16).replace("T", " ");
  return source === "file" ? `file of ${shown}` : shown;
}

const date = (hit) => make("span", { className: "scores" }, dateOf(hit.metadata));

function scores(hit) {
  const parts = [make("span", { title: "Cosine of the vectors of query and image" }, `similarity ${hit.similarity.toFixed(2)}`)];
  if (hit.words !== null) parts.push(make("span", { title: "Share of the query's words in its texts" }, `words ${Math.round(100 * hit.words)} %`));
  if (hit.probability !== null) {
    parts.unshift(make("span", { title: "Score of the fusion encoder for words and image" }, make("b", {}, `fits ${percent(hit.probability)}`)));
  }
  return make("span", { className: "scores" }, ...parts);
}

function nothing() {
  return make("li", { className: "empty" }, make("strong", {}, "Nothing here"), "No image passes the filters, or has these words. Widen or remove them.");
}
