// The page: reads what is wanted from its address, asks the service, and shows the answer.

import { Problem, addressOf, call, show } from "./api.js";
import { listenForSteps, openHit, openOwn, showSteps } from "./detail.js";
import { $, cross, make } from "./dom.js";
import { Filters, PHOTO_FIELDS, SOURCE } from "./filters.js";
import { loadMap, showMap } from "./map.js";
import { hasParts, queryOf } from "./query.js";
import { addResults, cards, clearGrid, clearProblem, showAlbums, showMonths, showProblem, showSamples, showStatus } from "./results.js";
import { listenForKeys } from "./keys.js";
import { showSkipped } from "./skipped.js";

const STEP = 48;
const MOST = 10_000; // results of a search
const NEAR = "800px"; // how far below the window more results are loaded
const AGAIN_MS = 5000; // until the service is asked again how many images are indexed
const UNUSABLE = [413, 422]; // statuses of an upload that never will be taken

let about = null;
let filters = null;
let running = null;
let ready = null; // true when it is known what the service can do; what a quick user does before waits for it
let groups = null; // albums and months, once asked for
let map = null; // also
let hits = []; // all that are shown
let next = null; // where the results go on, and how; null at their end
const images = new Map(); // those that were searched by; an address cannot hold one, so it holds their number

// ---- what is wanted, and the address

function wanted() {
  const params = new URLSearchParams(location.search);
  const values = Object.fromEntries([...params].filter(([name]) => name.startsWith("f.") || PHOTO_FIELDS.includes(name)));
  const [like, unlike] = ["like", "unlike"].map((name) => params.getAll(name));
  const [image, view, mode] = ["image", "view", "mode"].map((name) => params.get(name));
  return { words: params.get("q") ?? "", like, unlike, image, view, mode: mode ?? "auto", rerank: params.get("rerank") !== "0", values };
}

async function go({ words = "", like = [], unlike = [], image = null, view = null }, { replace = false } = {}) {
  if (!(await ready)) return null;
  const params = new URLSearchParams();
  if (image) params.set("image", image);
  if (words) params.set("q", words);
  for (const each of like) params.append("like", each);
  for (const each of unlike) params.append("unlike", each);
  if (view) params.set("view", view);
  if (!["", "auto"].includes($("mode").value)) params.set("mode", $("mode").value);
  if (!$("rerank").checked) params.set("rerank", "0");
  for (const [name, value] of Object.entries(filters?.values ?? {})) params.set(name, value);
  const address = params.size ? `?${params}` : "/";
  if (replace) history.replaceState(null, "", address);
  else {
    history.replaceState({ top: hits.length, y: window.scrollY }, ""); // for the way back
    history.pushState(null, "", address);
  }
  return run();
}

function goAgain(changes = {}) {
  return go({ ...wanted(), ...changes });
}

function fillForm({ words, mode, rerank }) {
  $("words").value = words;
  $("mode").value = mode;
  $("rerank").checked = rerank;
}

const hasQuery = ({ words, like, unlike, image }) => Boolean(words || like.length || unlike.length || image);

// Photographs of a time, a place or an album are listed without a query too.
const wantsList = () => Object.keys(filters?.photos ?? {}).length > 0;

// ---- running

// `typing`: what stands in the form is the user's, who was faster than the service.
async function run({ typing = false } = {}) {
  running?.abort();
  next = null;
  const mine = (running = new AbortController());
  const want = wanted();
  if (!typing) fillForm(want);
  showWanted(want);
  clearProblem();
  if (!hasQuery(want) && !want.view && !wantsList()) return showStart();
  if (want.image && !images.has(want.image)) {
    showNothing();
    return showProblem(new Problem("That image is no longer here.", { hint: "Choose it again.", status: 410 }), {});
  }
  setBusy(true);
  try {
    if (want.view === "map") await showTheMap(mine.signal);
    else if (want.view) await showAllAlbums(mine.signal);
    else await showFirst(want, mine.signal);
  } catch (problem) {
    if (mine.signal.aborted) return;
    showNothing();
    if (want.image && UNUSABLE.includes(problem.status)) await go({ words: want.words }, { replace: true });
    showProblem(problem, { onRetry: () => run() });
  } finally {
    if (mine === running) setBusy(false);
  }
}

async function showFirst(want, signal) {
  const began = performance.now();
  const byDate = filters.photos.sort === "date" || !hasQuery(want);
  const whole = byDate && hasQuery(want); // the best by date, which are sorted as a whole
  const top = whole ? about.limits.top : Math.min(Math.max(history.state?.top ?? 0, STEP), about.limits.top);
  const found = await ask(want, { top, offset: 0, signal });
  signal.throwIfAborted();
  clearGrid();
  hits = [];
  // What the fusion encoder has reordered stands on the first page, unless the order by words is mixed with it.
  const rerank = want.rerank && (!found.num_reranked || found.num_matched > 0);
  next = whole || found.hits.length < top ? null : { want: { ...want, rerank }, offset: top, byDate };
  add(found, byDate);
  showStatus(found, { seconds: (performance.now() - began) / 1000, more: next !== null });
  if (history.state?.y) window.scrollTo({ top: history.state.y });
  if (byDate && !hasQuery(want)) await showDates(want, signal);
}

// Adds the next results. At most one call runs at a time.
async function showMore() {
  const mine = next;
  if (!mine || mine.busy) return;
  const { want, offset, byDate } = mine;
  mine.busy = true;
  try {
    const found = await ask(want, { top: STEP, offset, signal: running.signal });
    if (next !== mine) return; // something else is wanted by now
    next = found.hits.length < STEP || offset + 2 * STEP > MOST ? null : { want, offset: offset + STEP, byDate };
    add(found, byDate);
  } catch (problem) {
    if (next !== mine) return;
    mine.busy = false;
    showProblem(problem, { onRetry: () => clearProblem() || showMore() });
  }
}

function add(found, byDate) {
  const known = new Set(hits.map(({ id }) => id)); // the index may have changed between two calls
  const others = found.hits.filter(({ id }) => !known.has(id));
  hits.push(...others);
  const marksUndated = Boolean(filters.photos.from || filters.photos.to);
  addResults(others, { onOpen: openResult, byDate, marksUndated });
  showSteps();
  $("more").hidden = !next;
  nearEnd.unobserve($("more")); // so that it is looked at again
  nearEnd.observe($("more"));
}

// A slow machine tells of several changes at once, of which the last holds.
const nearEnd = new IntersectionObserver((changes) => changes.at(-1).isIntersecting && showMore(), { rootMargin: NEAR });

async function ask(want, { top, offset, signal }) {
  const body = { top, offset, where: filters.where, ...filters.photos };
  if (want.like.length) body.like = want.like;
  if (want.unlike.length) body.unlike = want.unlike;
  const image = want.image && (await addressOf(images.get(want.image).file));
  Object.assign(body, queryOf(want.words, image, { isLike: want.like.length > 0 }));
  if (!hasQuery(want)) body.sort = "date";
  if (["words", "hybrid"].includes(want.mode) && !about.has_texts) {
    throw new Problem("This index has no words to look up.", { hint: "Search without a mode, by what images show.", status: 400 });
  }
  if (body.text && !body.like && !body.unlike) {
    body.mode = want.mode;
    if (!want.rerank && !body.parts.length) body.rerank = 0;
  }
  return call("/v1/search", { body, signal });
}

// ---- showing

function setBusy(busy) {
  document.body.classList.toggle("busy", busy);
  $("results").setAttribute("aria-busy", String(busy));
}

function showNothing() {
  clearGrid();
  hits = [];
  next = null;
  $("status").textContent = $("status").dataset.step = "";
  $("note").hidden = $("more").hidden = true;
}

function showStart() {
  setBusy(false);
  showNothing();
}

async function showAllAlbums(signal) {
  groups ??= await call("/v1/groups");
  signal.throwIfAborted();
  showNothing();
  const open = ({ name }) => {
    filters.values = { album: name, sort: "date" };
    go({});
  };
  showAlbums(groups.albums, { onOpen: open });
  $("status").textContent = `${groups.albums.length} albums`;
}

async function showTheMap(signal) {
  showNothing();
  const onStep = (step, seconds) => {
    const passed = make("span", { "aria-hidden": "true" }, ` · ${seconds} s`);
    if ($("status").dataset.step !== step) $("status").replaceChildren(`Drawing the map: ${step}`);
    $("status").dataset.step = step;
    $("status").querySelector("span")?.remove();
    $("status").append(passed);
  };
  map ??= await loadMap({ signal, onStep });
  showMap(map, { onOpen: (hit) => openResult(hit, { among: map.images }) });
  $("status").textContent = `${map.images.length.toLocaleString("en")} images on the map`;
}

async function showDates({ values }, signal) {
  groups ??= await call("/v1/groups");
  signal.throwIfAborted();
  const back = (month) => {
    const [year, number] = month.split("-").map(Number);
    const asked = month ? { to: `${month}-${new Date(year, number, 0).getDate()}` } : { [SOURCE]: "file" };
    const { to, [SOURCE]: source, ...others } = filters.values;
    filters.values = { ...others, ...asked };
    goAgain();
  };
  const chosen = values[SOURCE] === "file" ? "" : values.to;
  showMonths(groups, { chosen, onChange: back });
  $("months").hidden = groups.months.length + (groups.num_undated > 0) < 2;
}

function showWanted(want) {
  const { words, like, unlike, image, view, values } = want;
  if (filters) filters.values = values;
  const isStart = !hasQuery(want) && !view && !wantsList();
  document.body.classList.toggle("start", isStart);
  document.body.classList.toggle("listing", !hasQuery(want)); // which is by date in any case
  $("samples").hidden = !isStart || !about?.samples.length;
  $("months").hidden = $("map-part").hidden = true;
  document.title = words ? `${words} · Image search` : "Image search";
  for (const tab of $("tabs").children) tab.ariaCurrent = tab.search === (view ? `?view=${view}` : !hasQuery(want) && !isStart ? "?sort=date" : "-") ? "page" : null;
  for (const [kind, ids] of Object.entries({ like, unlike })) $("chips").append(...ids.map((id) => refinement(want, kind, id)));
  $("words").placeholder = image ? 'and maybe words: +"at night" -people' : "a red umbrella in the rain";
  $("by-image").hidden = !image;
  $("mode").disabled = Boolean((image && !words) || like.length || unlike.length);
  $("rerank").disabled = Boolean(image || like.length || unlike.length || hasParts(words) || want.mode === "words");
  const own = image && images.get(image);
  if (!image) return;
  $("by-image-name").textContent = own ? own.name : "an image";
  $("by-image-image").onerror = ({ target }) => (target.src = "/static/icon.svg"); // a format that the browser does not show
  show($("by-image-image"), own ? own.url : "/static/icon.svg");
  $("ask-own").hidden = !(own && about?.can_answer);
  if (own) $("ask-own").onclick = () => openOwn(own.file, { canAnswer: true });
}

// An image that the query is to be like, or not like, and that can be removed.
function refinement(want, kind, id) {
  const image = make("img", { alt: "" });
  show(image, `/v1/thumbnails/${encodeURIComponent(id)}`);
  const words = kind === "like" ? "like this" : "not like this";
  const remove = () => goAgain({ [kind]: want[kind].filter((each) => each !== id) }).then(() => $("words").focus());
  return make("button", { type: "button", className: `chip ${kind}`, "aria-label": `Remove: ${words}`, onclick: remove }, image, words, cross());
}

function openResult(hit, { among = hits } = {}) {
  const neighbour = ({ id }, by) => {
    const at = among.findIndex((each) => each.id === id) + by;
    if (among === hits && at > hits.length - 4) showMore();
    return among[at];
  };
  const refine = (kind) => ({ id }) => {
    const { like, unlike, ...others } = wanted();
    const rest = { like: like.filter((each) => each !== id), unlike: unlike.filter((each) => each !== id) };
    window.scrollTo({ top: 0 });
    go({ ...others, view: null, ...rest, [kind]: [...rest[kind], id] }).then(() => $("results").focus({ preventScroll: true }));
  };
  openHit(hit, {
    neighbour,
    onMore: refine("like"),
    onLess: hasQuery(wanted()) ? refine("unlike") : null,
    canAnswer: about.can_answer,
  });
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
    const { image } = wanted();
    if (words) go({ words, image });
    else if (hasQuery(wanted()) || wantsList()) goAgain({ words });
    else $("words").focus();
  });
  $("rerank").addEventListener("change", () => {
    const words = $("words").value.trim() || wanted().words;
    go({ words }, { replace: !words });
  });
  $("mode").addEventListener("change", () => {
    const words = $("words").value.trim();
    go({ ...wanted(), words: words || wanted().words }, { replace: !words });
  });
  $("by-words").addEventListener("click", () => {
    go({ words: wanted().words }).then(() => $("words").focus());
  });
  $("more").addEventListener("click", async () => {
    const shown = cards().length;
    await showMore();
    cards()[shown]?.focus();
  });
  $("home").addEventListener("click", async (event) => {
    event.preventDefault();
    if (!(await ready)) return;
    filters.values = {};
    $("rerank").checked = true;
    $("mode").value = "auto";
    go({}).then(() => $("words").focus());
  });
  for (const tab of $("tabs").children) {
    tab.addEventListener("click", async (event) => {
      event.preventDefault();
      if (!(await ready)) return;
      groups = map = null; // they may have changed
      const params = new URLSearchParams(tab.search);
      filters.values = params.has("sort") ? { sort: "date" } : {};
      window.scrollTo({ top: 0 });
      go({ view: params.get("view") });
    });
  }
  window.addEventListener("popstate", () => {
    $("detail").close();
    if (about?.can_search) run();
  });
  $("detail").addEventListener("click", (event) => {
    if (event.target === $("detail")) $("detail").close(); // beside what it shows
  });
  $("detail").addEventListener("close", () => {
    const { id } = $("detail").dataset; // after some steps another one than that which was opened
    if (id) [...document.querySelectorAll(`.card[data-id="${CSS.escape(id)}"], #map [data-id="${CSS.escape(id)}"]`)].find((each) => each.checkVisibility())?.focus();
  });
  listenForSteps();
  listenForKeys();
  listenForImages();
}

function showAbout() {
  const number = about.num_images.toLocaleString("en");
  showSkipped(about);
  $("rerank-option").hidden = !about.can_rerank;
  if (about.can_search) {
    showSamples(about.samples, { onOpen: (hit) => openResult(hit, { among: about.samples }) });
    $("tabs").hidden = false;
    for (const tab of $("tabs").children) tab.hidden = tab.search !== "?view=map" && !(about.columns.taken && about.columns.album);
    $("mode-option").hidden = !about.has_texts;
    $("collection").textContent = `${number} image${about.num_images === 1 ? "" : "s"}${about.complete ? "" : ", more are being indexed"}`;
    return;
  }
  $("words").hidden = true;
  $("search").querySelector(".go").hidden = true;
  $("headline").textContent = about.can_answer ? "Ask about an image." : "Nothing to search here.";
  $("hint").textContent = about.can_answer
    ? "Drop, paste or upload an image, then ask."
    : "This service was started without an index. Its API embeds and reranks all the same.";
}

// While images are being indexed, their number grows.
async function learnAgain() {
  try {
    const { columns, ...now } = await call("/v1/about");
    Object.assign(about, now, { samples: about.samples.length ? about.samples : now.samples });
    showAbout();
  } finally {
    if (!about.complete) setTimeout(learnAgain, AGAIN_MS);
  }
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
  if (!about.complete) setTimeout(learnAgain, AGAIN_MS);
  return true;
}

history.scrollRestoration = "manual";
fillForm(wanted());
ready = learn();
listen();
if (!location.search) $("words").focus();
