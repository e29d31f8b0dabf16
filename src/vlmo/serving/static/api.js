// Calls of the service. What goes wrong is a Problem with a reason and a hint.

import { $ } from "./dom.js";

const KEY = "vlmo-key";

export class Problem extends Error {
  constructor(reason, { hint = "", status = 0 } = {}) {
    super(reason);
    this.hint = hint;
    this.status = status;
  }
}

// A file as the service takes it: a `data:` address.
export function addressOf(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Problem("The file cannot be read.", { hint: "Choose it again." }));
    reader.readAsDataURL(file);
  });
}

export async function call(path, { body = null, signal = null } = {}) {
  const response = await request(path, { body, signal });
  return response.json();
}

const wanted = new WeakMap(); // what an image is to show: an older answer that comes later is not for it

// Images cannot be asked for with a key by their address; without a key the browser loads, and keeps, them itself.
export async function show(image, path) {
  wanted.set(image, path);
  image.removeAttribute("title");
  if (!needsKey(path)) {
    image.src = path;
    return;
  }
  image.removeAttribute("src");
  try {
    const address = await copyOf(path);
    if (wanted.get(image) !== path) return URL.revokeObjectURL(address);
    image.addEventListener("load", () => URL.revokeObjectURL(address), { once: true });
    image.src = address;
  } catch (problem) {
    if (wanted.get(image) === path) image.title = problem.message;
  }
}

export const prefetch = (path) => !needsKey(path) && (new Image().src = path);

const needsKey = (path) => path.startsWith("/v1/") && Boolean(sessionStorage.getItem(KEY));

async function copyOf(path) {
  const response = await request(path);
  return URL.createObjectURL(await response.blob());
}

// Lets a link lead to a path, with a key to a copy that is fetched when it is followed.
export function lead(link, path) {
  link.href = path;
  link.onclick = async (event) => {
    if (link.href.startsWith("blob:") || !needsKey(path)) return;
    event.preventDefault();
    const address = await copyOf(path);
    link.href = address;
    link.click();
    link.href = path;
    setTimeout(() => URL.revokeObjectURL(address), 60_000); // a new tab reads it first
  };
}

async function request(path, { body = null, signal = null } = {}) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  const options = { headers, signal };
  if (body) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The service does not answer.", { hint: "Is it running? Is the network there?" });
  }
  if (response.status === 401) {
    await askForKey(key);
    return request(path, { body, signal });
  }
  if (response.ok) return response;
  throw await problemOf(response);
}

async function problemOf(response) {
  try {
    const { error, detail } = await response.json();
    return new Problem(sentence(error.message), { hint: sentence(detail), status: response.status });
  } catch {
    return new Problem(`The service answered ${response.status}.`, { status: response.status });
  }
}

function sentence(text) {
  const trimmed = (text || "").trim();
  return trimmed && trimmed[0].toUpperCase() + trimmed.slice(1) + (/[.!?]$/.test(trimmed) ? "" : ".");
}

let asking = null;

function askForKey(tried) {
  const known = sessionStorage.getItem(KEY);
  if (known && known !== tried) return Promise.resolve(); // another call has got one meanwhile
  sessionStorage.removeItem(KEY);
  asking ??= new Promise((resolve, reject) => {
    const dialog = $("key-dialog");
    $("key").value = "";
    $("key-wrong").textContent = tried ? "The key is no longer right." : "";
    $("key-form").onsubmit = (event) => {
      event.preventDefault();
      tryKey($("key").value.trim());
    };
    dialog.addEventListener(
      "close",
      () => {
        asking = null;
        if (sessionStorage.getItem(KEY)) resolve();
        else reject(new Problem("Without a key the service shows nothing.", { status: 401 }));
      },
      { once: true },
    );
    dialog.showModal();
  });
  return asking;
}

// Keeps a key, and closes the dialog, when the service has taken it.
async function tryKey(key) {
  const wrong = await wrongWith(key);
  if (!$("key-dialog").open) return;
  $("key-wrong").textContent = wrong;
  if (wrong) return $("key").select();
  sessionStorage.setItem(KEY, key);
  $("key-dialog").close();
}

async function wrongWith(key) {
  if (!/^[\x20-\x7e]+$/.test(key)) return "A key has no other characters than ASCII has.";
  try {
    const response = await fetch("/v1/about", { headers: { Authorization: `Bearer ${key}` } });
    if (response.ok) return "";
    return response.status === 401 ? "That is not the key." : (await problemOf(response)).message;
  } catch {
    return "The service does not answer.";
  }
}
