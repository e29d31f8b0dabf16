// The grid of results, and what stands around it.

import { show } from "./api.js";
import { $, make, percent } from "./dom.js";

export const titleOf = (hit) => hit.captions[0] || hit.name;

// With `byDate` a heading stands before the images of each month.
export function showResults(found, { onOpen, byDate }) {
  let month = null;
  const cards = found.hits.flatMap((hit, position) => {
    const shown = card(hit, { position, onOpen, below: [title(hit), byDate ? date(hit) : scores(hit)] });
    if (!byDate || month === monthOf(hit)) return [shown];
    month = monthOf(hit);
    return [make("li", { className: "month" }, make("h2", {}, month)), shown];
  });
  $("grid").replaceChildren(...(cards.length ? cards : [nothing()]));
}

export function showStatus(found, { seconds }) {
  const number = found.hits.length;
  const closer = found.num_reranked ? ` · the best ${found.num_reranked} reranked` : "";
  const before = found.no_match ? "No match · the nearest " : "";
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

function card(hit, { position, onOpen, below }) {
  const image = make("img", { alt: below.length ? "" : titleOf(hit), width: 200, height: 200, loading: position < 12 ? "eager" : "lazy", decoding: "async" });
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

const title = (hit) => make("span", { className: "what" }, titleOf(hit));

const MONTH = { month: "long", year: "numeric" };

function monthOf({ metadata: { taken } }) {
  return taken ? new Date(`${taken.slice(0, 7)}-01T00:00`).toLocaleDateString("en", MONTH) : "Without a date";
}

const date = (hit) => make("span", { className: "scores" }, (hit.metadata.taken ?? "").slice(0, 16).replace("T", " "));

function scores(hit) {
  const parts = [make("span", { title: "Cosine of the vectors of query and image" }, `similarity ${hit.similarity.toFixed(2)}`)];
  if (hit.probability !== null) {
    parts.unshift(make("span", { title: "Score of the fusion encoder for words and image" }, make("b", {}, `fits ${percent(hit.probability)}`)));
  }
  return make("span", { className: "scores" }, ...parts);
}

function nothing() {
  return make("li", { className: "empty" }, make("strong", {}, "Nothing here"), "No image passes the filters. Widen or remove them.");
}
