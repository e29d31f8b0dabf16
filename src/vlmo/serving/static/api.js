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

export async function call(path, { body = null, signal = null } = {}) {
  const response = await request(path, { body, signal });
  return response.json();
}

// Pictures cannot be asked for with a key by their address; without a key the browser loads, and keeps, them itself.
export async function show(image, path) {
  if (!sessionStorage.getItem(KEY)) {
    image.src = path;
    return;
  }
  try {
    const response = await request(path);
    image.src = URL.createObjectURL(await response.blob());
    image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
  } catch (problem) {
    image.title = problem.message;
  }
}

async function request(path, { body = null, signal = null } = {}) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  const options = { headers, signal };
  if (body instanceof FormData) Object.assign(options, { method: "POST", body });
  else if (body) {
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
    const { error } = await response.json();
    return new Problem(sentence(error.reason), { hint: sentence(error.hint), status: response.status });
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
  asking ??= new Promise((resolve, reject) => {
    const dialog = $("key-dialog");
    $("key").value = "";
    dialog.addEventListener(
      "close",
      () => {
        asking = null;
        if (!$("key").value) return reject(new Problem("Without a key the service shows nothing.", { status: 401 }));
        sessionStorage.setItem(KEY, $("key").value.trim());
        resolve();
      },
      { once: true },
    );
    dialog.showModal();
  });
  return asking;
}
