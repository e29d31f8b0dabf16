// One image in a dialog: what is known of it, those before and after it, images like it, and questions about it.

import { Problem, addressOf, call, lead, prefetch, show } from "./api.js";
import { $, make, percent } from "./dom.js";
import { dateOf, titleOf } from "./results.js";

const SWIPE = 50; // pixels
let asked = null;
let step = null; // goes to another image
export let showSteps = () => {}; // shows whether there are others

// `neighbour` gives the hit some steps on, if there is one; without `onLess` there is no query to change.
export function openHit(hit, { neighbour, onMore, onLess, canAnswer }) {
  $("detail-title").textContent = titleOf(hit);
  $("detail-captions").replaceChildren(...hit.captions.slice(1).map((caption) => make("li", {}, caption)));
  const facts = [];
  if (hit.similarity) facts.push(["similarity", hit.similarity.toFixed(3)]);
  if (hit.probability != null) facts.push(["fits the words", percent(hit.probability)]);
  facts.push(["file", hit.name], ["size", `${hit.width} × ${hit.height}`]);
  const isUndated = hit.metadata.taken_from === "file";
  const metadata = isUndated ? { ...hit.metadata, taken: `unknown (${dateOf(hit.metadata)})`, taken_from: "" } : hit.metadata;
  facts.push(...Object.entries(metadata).filter(([, value]) => value !== null && value !== ""));
  showFacts(facts);
  const path = `/v1/images/${encodeURIComponent(hit.id)}`;
  show($("detail-image"), `/v1/thumbnails/${encodeURIComponent(hit.id)}`); // until the whole one is there
  const whole = make("img", { onload: () => $("detail").dataset.id === hit.id && show($("detail-image"), path) });
  show(whole, path);
  for (const name of ["detail-open", "detail-download"]) lead($(name), path);
  $("detail-download").download = `${hit.name.replace(/\.\w+$/, "")}.jpg`;
  $("detail-image").alt = titleOf(hit);
  $("detail-links").hidden = $("detail-more").hidden = false;
  for (const [name, run] of [["detail-similar", onMore], ["detail-unlike", onLess]]) {
    $(name).onclick = () => {
      $("detail").close();
      run(hit);
    };
  }
  $("detail-unlike").hidden = !onLess;
  step = (by) => {
    const next = neighbour(hit, by);
    if (next) openHit(next, { neighbour, onMore, onLess, canAnswer });
  };
  showSteps = () => {
    for (const [name, by] of [["previous", -1], ["next", 1]]) $(name).hidden = !neighbour(hit, by);
  };
  showSteps();
  $("detail").dataset.id = hit.id;
  for (const near of [neighbour(hit, 1), neighbour(hit, -1)].filter(Boolean)) prefetch(`/v1/images/${encodeURIComponent(near.id)}`);
  open({ canAnswer, about: async () => ({ id: hit.id }) });
}

export function openOwn(file, { canAnswer }) {
  $("detail-title").textContent = file.name || "Your image";
  $("detail-captions").replaceChildren();
  showFacts([]);
  show($("detail-image"), URL.createObjectURL(file));
  $("detail-image").alt = "Your image";
  for (const name of ["detail-more", "detail-links", "previous", "next"]) $(name).hidden = true;
  step = null;
  showSteps = () => {};
  delete $("detail").dataset.id;
  open({ canAnswer, about: async () => ({ image: await addressOf(file) }) });
}

export function listenForSteps() {
  $("previous").onclick = () => step?.(-1);
  $("next").onclick = () => step?.(1);
  $("detail").addEventListener("keydown", (event) => {
    if (event.target === $("question") || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowLeft") step?.(-1);
    if (event.key === "ArrowRight") step?.(1);
  });
  let from = null;
  const touched = $("detail").querySelector(".detail-image");
  touched.addEventListener("touchstart", ({ touches }) => (from = touches.length === 1 ? touches[0].clientX : null), { passive: true });
  touched.addEventListener("touchend", ({ changedTouches }) => {
    const moved = from === null ? 0 : changedTouches[0].clientX - from;
    if (Math.abs(moved) > SWIPE) step?.(moved < 0 ? 1 : -1);
  });
}

function open({ canAnswer, about }) {
  $("answers").replaceChildren();
  $("question").value = "";
  $("question-form").hidden = !canAnswer;
  $("question-form").onsubmit = (event) => {
    event.preventDefault();
    ask(about);
  };
  if (!$("detail").open) $("detail").showModal();
  if (document.activeElement?.hidden) $("detail").focus(); // the last step has hidden its button
}

function showFacts(facts) {
  const rows = facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, shown(value))]);
  $("detail-facts").replaceChildren(...rows);
}

function shown(value) {
  if (typeof value === "boolean") return value ? "yes" : "no";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

async function ask(about) {
  asked?.abort();
  asked = new AbortController();
  $("question-form").setAttribute("aria-busy", "true");
  try {
    const { answers } = await call("/v1/vqa", { body: { question: $("question").value, top: 3, ...(await about()) }, signal: asked.signal });
    $("answers").replaceChildren(...answers.map(row));
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    $("answers").replaceChildren(make("li", { className: "wrong" }, `${problem.message} ${problem.hint}`));
  } finally {
    $("question-form").removeAttribute("aria-busy");
  }
}

function row({ answer, score }) {
  return make(
    "li",
    {},
    make("span", {}, answer),
    make("meter", { value: score, "aria-hidden": "true" }),
    make("span", { className: "soft" }, percent(score)),
  );
}
