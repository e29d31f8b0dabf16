// The page: a search by words or by a drawing among the gallery's images, without any server.

import { embedImage, embedText, loadImageEncoder, loadTextEncoder } from "./model.js";

const TOP = 24;
const LOADED_FIRST = ["ort-wasm-simd-threaded.wasm.gz", "text_encoder.onnx.gz"];

const find = (id) => document.getElementById(id);
const status = find("status");
const canvas = find("canvas");
const pen = canvas.getContext("2d", { willReadFrequently: true });

const gallery = await (await fetch("gallery.json")).json();
const vectors = fetch("vectors.bin").then(async (response) => new Int16Array(await response.arrayBuffer()));

/** Return the numbers and similarities of the images nearest to a unit vector, best first. */
async function nearest(vector) {
  const all = await vectors;
  const hits = gallery.names.map((_, number) => {
    let sum = 0;
    for (let part = 0; part < gallery.dim; part++) sum += vector[part] * all[number * gallery.dim + part];
    return { number, similarity: sum / gallery.scale };
  });
  return hits.sort((one, other) => other.similarity - one.similarity).slice(0, TOP);
}

function card({ number, similarity }) {
  const tile = document.createElement("span");
  tile.className = "tile";
  const column = number % gallery.columns;
  const row = Math.floor(number / gallery.columns);
  tile.style.backgroundPosition = `${-column * gallery.thumbnail}px ${-row * gallery.thumbnail}px`;
  const name = document.createElement("span");
  name.textContent = gallery.names[number];
  const item = document.createElement("li");
  item.title = `similarity ${similarity.toFixed(2)}`;
  item.append(tile, name);
  return item;
}

let newest = 0;

/** Show the images nearest to what `embed` returns; an older search that ends later shows nothing. */
async function show(what, embed) {
  const own = ++newest;
  const started = performance.now();
  status.textContent = `Searching for ${what} ...`;
  try {
    const hits = await nearest(await embed());
    if (own !== newest) return;
    find("results").replaceChildren(...hits.map(card));
    const milliseconds = Math.round(performance.now() - started);
    status.textContent = `Nearest to ${what} among ${gallery.names.length} images: ${milliseconds} ms`;
  } catch (error) {
    status.textContent = `The search failed: ${error.message}. Reload the page to try again.`;
  }
}

function searchWords(text) {
  const words = text.trim();
  if (!words) {
    status.textContent = "Give words, such as: red heart";
    return;
  }
  find("words").value = words;
  history.replaceState(null, "", `?q=${encodeURIComponent(words)}`);
  show(`“${words}”`, () => embedText(words));
}

const searchDrawing = () =>
  show("your drawing", () => embedImage(pen.getImageData(0, 0, canvas.width, canvas.height)));

function clearDrawing() {
  // Training images lie on white.
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
}

function drawOnCanvas() {
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    const scale = canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  };
  let drawing = false;
  canvas.addEventListener("pointerdown", (event) => {
    drawing = true;
    canvas.setPointerCapture(event.pointerId);
    pen.lineWidth = Number(find("width").value);
    pen.lineCap = pen.lineJoin = "round";
    pen.strokeStyle = find("color").value;
    pen.beginPath();
    pen.moveTo(...at(event));
    // A press without a move leaves a dot.
    pen.lineTo(...at(event));
    pen.stroke();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!drawing) return;
    pen.lineTo(...at(event));
    pen.stroke();
  });
  const end = () => {
    if (drawing) searchDrawing();
    drawing = false;
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
}

async function start() {
  const style = document.documentElement.style;
  style.setProperty("--thumbnail", `${gallery.thumbnail}px`);
  find("credits").textContent = gallery.credits.join(", ");
  find("form").addEventListener("submit", (event) => {
    event.preventDefault();
    searchWords(find("words").value);
  });
  find("clear").addEventListener("click", clearDrawing);
  for (const query of gallery.queries) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = query;
    button.addEventListener("click", () => searchWords(query));
    find("examples").append(button);
  }
  clearDrawing();
  drawOnCanvas();
  // Who opens it will draw: the encoder comes meanwhile. What fails then is told by the search.
  find("drawing").addEventListener("toggle", () => loadImageEncoder().catch(() => {}), { once: true });
  const total = LOADED_FIRST.reduce((sum, name) => sum + gallery.sizes[name], 0);
  let loaded = 0;
  try {
    await loadTextEncoder((bytes) => {
      loaded += bytes;
      const share = Math.round((100 * loaded) / total);
      status.textContent = `Loading the model: ${share} % of ${(total / 1e6).toFixed(1)} MB`;
    });
  } catch (error) {
    status.textContent = `The model did not load: ${error.message}`;
    return;
  }
  searchWords(new URLSearchParams(location.search).get("q") || gallery.queries.at(-1));
}

start();
