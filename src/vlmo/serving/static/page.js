// The page: reads what is wanted from its address, asks the service, and shows the answer.

import { Problem, addressOf, call, show } from "./api.js";
import { openHit, openOwn } from "./detail.js";
import { $ } from "./dom.js";
import { Filters, PHOTO_FIELDS } from "./filters.js";
import { clearProblem, showProblem, showResults, showSamples, showStatus, titleOf } from "./results.js";

const STEP = 24;
const UNUSABLE = [413, 422]; // statuses of an upload that never will be taken

let about = null;
let filters = null;
let running = null;
let ready = null; // true when it is known what the service can do; what a quick user does before waits for it
const images = new Map(); // those that were searched by; an address cannot hold one, so it holds their number

// ---- what is wanted, and the address

function wanted() {
  const params = new URLSearchParams(location.search);
  const values = Object.fromEntries([...params].filter(([name]) => name.startsWith("f.") || PHOTO_FIELDS.includes(name)));
  const top = Math.min(Math.max(Number(params.get("top")) || STEP, 1), about?.limits.top ?? STEP);
  return { words: params.get("q") ?? "", like: params.get("like"), image: params.get("image"), rerank: params.get("rerank") !== "0", top, values };
}

async function go({ words = "", like = null, image = null, top = STEP }, { replace = false, title = "" } = {}) {
  if (!(await ready)) return null;
  const params = new URLSearchParams();
  if (image) params.set("image", image);
  else if (like) params.set("like", like);
  else if (words) params.set("q", words);
  if (!$("rerank").checked) params.set("rerank", "0");
  if (top !== STEP) params.set("top", top);
  for (const [name, value] of Object.entries(filters?.values ?? {})) params.set(name, value);
  const address = params.size ? `?${params}` : "/";
  if (replace) history.replaceState({ title }, "", address);
  else history.pushState({ title }, "", address);
  return run();
}

function goAgain(changes = {}) {
  return go({ ...wanted(), ...changes });
}

function fillForm({ words, rerank }) {
  $("words").value = words;
  $("rerank").checked = rerank;
}

// Photographs of a time, a place or an album are listed without a query too.
const wantsList = () => Object.keys(filters?.photos ?? {}).length > 0;

// ---- running

// `typing`: what stands in the form is the user's, who was faster than the service.
async function run({ typing = false } = {}) {
  running?.abort();
  const mine = (running = new AbortController());
  const want = wanted();
  if (!typing) fillForm(want);
  showWanted(want);
  clearProblem();
  if (!want.words && !want.like && !want.image && !wantsList()) return showStart();
  if (want.image && !images.has(want.image)) {
    $("grid").replaceChildren();
    return showProblem(new Problem("That image is no longer here.", { hint: "Choose it again.", status: 410 }), {});
  }
  setBusy(true);
  const began = performance.now();
  try {
    const found = await ask(want, mine.signal);
    showResults(found, { onOpen: openResult, byDate: filters.photos.sort === "date" || !(want.words || want.like || want.image) });
    showStatus(found, { seconds: (performance.now() - began) / 1000 });
    $("more").hidden = found.hits.length < want.top || want.top >= about.limits.top;
  } catch (problem) {
    if (problem.name === "AbortError") return;
    $("status").textContent = "";
    $("grid").replaceChildren();
    $("more").hidden = true;
    if (want.image && UNUSABLE.includes(problem.status)) await go({}, { replace: true });
    showProblem(problem, { onRetry: () => run() });
  } finally {
    if (mine === running) setBusy(false);
  }
}

async function ask(want, signal) {
  const common = { top: want.top, where: filters.where, ...filters.photos };
  if (want.like) return call("/v1/similar", { body: { id: want.like, ...common }, signal });
  if (!want.image && !want.words) return call("/v1/search", { body: { ...common, sort: "date" }, signal });
  if (!want.image) {
    const plain = want.rerank ? {} : { rerank: 0 };
    return call("/v1/search", { body: { text: want.words, ...plain, ...common }, signal });
  }
  const image = await addressOf(images.get(want.image).file);
  return call("/v1/search", { body: { image, ...common }, signal });
}

// ---- showing

function setBusy(busy) {
  document.body.classList.toggle("busy", busy);
  $("results").setAttribute("aria-busy", String(busy));
}

function showStart() {
  setBusy(false);
  $("grid").replaceChildren();
  $("status").textContent = "";
  $("note").hidden = $("more").hidden = true;
}

function showWanted({ words, like, image, values }) {
  if (filters) filters.values = values;
  const byImage = Boolean(like || image);
  document.body.classList.toggle("start", !words && !byImage && !wantsList());
  $("samples").hidden = Boolean(words || byImage || wantsList() || !about?.samples.length);
  document.title = words ? `${words} · Image search` : "Image search";
  $("words").hidden = byImage;
  $("by-image").hidden = !byImage;
  $("rerank").disabled = byImage;
  if (!byImage) return;
  const own = image && images.get(image);
  $("by-image-name").textContent = own ? own.name : like ? `like ${history.state?.title || "this image"}` : "an image";
  $("by-image-image").onerror = ({ target }) => (target.src = "/static/icon.svg"); // a format that the browser does not show
  show($("by-image-image"), own ? own.url : like ? `/v1/thumbnails/${encodeURIComponent(like)}` : "/static/icon.svg");
  $("ask-own").hidden = !(own && about?.can_answer);
  if (own) $("ask-own").onclick = () => openOwn(own.file, { canAnswer: true });
}

function openResult(hit) {
  openHit(hit, { onSimilar: searchSimilar, canAnswer: about.can_answer });
}

function searchSimilar(hit) {
  window.scrollTo({ top: 0 });
  go({ like: hit.id }, { title: titleOf(hit) }).then(() => $("results").focus({ preventScroll: true }));
}

// ---- images of the user

async function searchBy(file) {
  if (!file || !(await ready)) return;
  if (!file.type.startsWith("image/") && !/\.(heic|heif|hif|avif)$/i.test(file.name)) {
    if (wanted().image) await go({}, { replace: true });
    return showProblem(new Problem("That is no image.", { hint: "Choose a JPEG, PNG, WebP, GIF, HEIC or AVIF file.", status: 415 }), {});
  }
  if (!about.can_search) return openOwn(file, { canAnswer: about.can_answer });
  const number = crypto.randomUUID?.() ?? String(Math.random());
  images.set(number, { file, name: file.name || "your image", url: URL.createObjectURL(file) });
  await go({ image: number });
}

function listenForImages() {
  $("file").addEventListener("change", () => {
    searchBy($("file").files[0]);
    $("file").value = "";
  });
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])][0];
    if (!file) return;
    event.preventDefault();
    searchBy(file);
  });
  let depth = 0;
  const over = (change) => (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    depth = Math.max(0, depth + change);
    $("drop").hidden = !depth;
  };
  document.addEventListener("dragenter", over(1));
  document.addEventListener("dragleave", over(-1));
  document.addEventListener("dragover", over(0));
  document.addEventListener("drop", (event) => {
    over(-depth)(event);
    searchBy(event.dataTransfer?.files[0]);
  });
}

// ---- start

function listen() {
  $("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const words = $("words").value.trim();
    const { like, image } = wanted();
    if ($("words").hidden) return goAgain();
    if (words) go({ words });
    else if (like || image || wantsList()) goAgain({ words });
    else $("words").focus();
  });
  $("rerank").addEventListener("change", () => {
    const words = $("words").value.trim() || wanted().words;
    go({ words, top: wanted().top }, { replace: !words });
  });
  $("by-words").addEventListener("click", () => {
    go({}).then(() => $("words").focus());
  });
  $("more").addEventListener("click", async () => {
    const shown = $("grid").querySelectorAll(".card").length;
    await goAgain({ top: Math.min(wanted().top + STEP, about.limits.top) });
    $("grid").querySelectorAll(".card")[shown]?.focus();
  });
  $("home").addEventListener("click", async (event) => {
    event.preventDefault();
    if (!(await ready)) return;
    filters.values = {};
    $("rerank").checked = true;
    go({}).then(() => $("words").focus());
  });
  window.addEventListener("popstate", () => {
    $("detail").close();
    if (about?.can_search) run();
  });
  $("detail").addEventListener("click", (event) => {
    if (event.target === $("detail")) $("detail").close(); // beside what it shows
  });
  listenForImages();
}

function showAbout() {
  const number = about.num_images.toLocaleString("en");
  $("rerank-option").hidden = !about.can_rerank;
  if (about.can_search) {
    showSamples(about.samples, { onOpen: openResult });
    $("collection").textContent = `${number} image${about.num_images === 1 ? "" : "s"}`;
    return;
  }
  $("words").hidden = true;
  $("search").querySelector(".go").hidden = true;
  $("headline").textContent = about.can_answer ? "Ask about an image." : "Nothing to search here.";
  $("hint").textContent = about.can_answer
    ? "Drop, paste or upload an image, then ask."
    : "This service was started without an index. Its API embeds and reranks all the same.";
}

async function learn() {
  try {
    about = await call("/v1/about");
  } catch (problem) {
    showProblem(problem, { onRetry: () => location.reload() });
    return false;
  }
  filters = new Filters(about.columns, { onChange: () => goAgain() });
  showAbout();
  if (about.can_search) run({ typing: true });
  return true;
}

fillForm(wanted());
ready = learn();
listen();
if (!location.search) $("words").focus();
