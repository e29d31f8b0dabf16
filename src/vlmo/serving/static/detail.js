// One image in a dialog: what is known of it, images like it, and questions about it.

import { Problem, addressOf, call, lead, show } from "./api.js";
import { $, make, percent } from "./dom.js";
import { titleOf } from "./results.js";

let asked = null;

export function openHit(hit, { onSimilar, canAnswer }) {
  $("detail-title").textContent = titleOf(hit);
  $("detail-captions").replaceChildren(...hit.captions.slice(1).map((caption) => make("li", {}, caption)));
  const facts = [];
  if (hit.similarity) facts.push(["similarity", hit.similarity.toFixed(3)]);
  if (hit.probability != null) facts.push(["fits the words", percent(hit.probability)]);
  facts.push(["file", hit.name], ["size", `${hit.width} × ${hit.height}`]);
  facts.push(...Object.entries(hit.metadata).filter(([, value]) => value !== null && value !== ""));
  showFacts(facts);
  const path = `/v1/images/${encodeURIComponent(hit.id)}`;
  show($("detail-image"), path);
  for (const name of ["detail-open", "detail-download"]) lead($(name), path);
  $("detail-download").download = `${hit.name.replace(/\.\w+$/, "")}.jpg`;
  $("detail-links").hidden = false;
  $("detail-image").alt = titleOf(hit);
  $("detail-similar").hidden = false;
  $("detail-similar").onclick = () => {
    $("detail").close();
    onSimilar(hit);
  };
  open({ canAnswer, about: async () => ({ id: hit.id }) });
}

export function openOwn(file, { canAnswer }) {
  $("detail-title").textContent = file.name || "Your image";
  $("detail-captions").replaceChildren();
  showFacts([]);
  show($("detail-image"), URL.createObjectURL(file));
  $("detail-image").alt = "Your image";
  $("detail-similar").hidden = $("detail-links").hidden = true;
  open({ canAnswer, about: async () => ({ image: await addressOf(file) }) });
}

function open({ canAnswer, about }) {
  $("answers").replaceChildren();
  $("question").value = "";
  $("question-form").hidden = !canAnswer;
  $("question-form").onsubmit = (event) => {
    event.preventDefault();
    ask(about);
  };
  $("detail").showModal();
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
