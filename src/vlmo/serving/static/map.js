// The map of the collection: images that look alike lie close, in groups.

import { call } from "./api.js";
import { $, make } from "./dom.js";
import { explore } from "./pan.js";
import { titleOf } from "./results.js";

const AGAIN_MS = 1000;
const pan = explore($("map"));
let shown = null;

// The map; until it is drawn, `onStep` gets what is being done, and after how many seconds.
export async function loadMap({ signal, onStep }) {
  for (let seconds = 0; ; seconds += AGAIN_MS / 1000) {
    const found = await call("/v1/map", { signal });
    if (found.images) return found;
    onStep(found.step, seconds);
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

// One that was shown before stays where it was moved to.
export function showMap(map, { onOpen }) {
  $("map-part").hidden = false;
  if (shown === map) return;
  shown = map;
  const buttons = map.images.map((hit) => {
    const button = make("button", { type: "button", title: hit.name, onclick: () => onOpen(hit) }, make("img", { alt: titleOf(hit), src: hit.thumbnail }));
    return placed(button, hit, { id: hit.id });
  });
  const names = map.groups.map((group) => placed(make("span", { "aria-hidden": "true" }, group.name), group));
  $("map").querySelector(".world").replaceChildren(...buttons, ...names);
  $("map-groups").replaceChildren(...map.groups.map((group) => make("button", { type: "button", onclick: () => pan.show(group, 4) }, group.name)));
  pan.place();
}

function placed(element, { x, y }, data = {}) {
  Object.assign(element.dataset, { x, y, ...data });
  return element;
}
