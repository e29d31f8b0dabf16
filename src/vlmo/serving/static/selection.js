// Images that are selected, in a bar at the bottom; and the keys of the grid.

import { lead } from "./api.js";
import { $, make } from "./dom.js";
import { cards, titleOf } from "./results.js";

const MOST = 1000; // files of an archive

export class Selection {
  constructor() {
    this.ids = new Set();
    $("select-none").addEventListener("click", () => {
      this.ids.clear();
      this.changed();
      cards()[0]?.focus();
    });
  }

  boxOf(hit) {
    const box = make("input", { type: "checkbox", checked: this.ids.has(hit.id), "aria-label": `Select ${titleOf(hit)}` });
    box.dataset.id = hit.id;
    box.addEventListener("change", () => this.toggle(hit.id, box.checked));
    return make("label", { className: "select" }, box);
  }

  toggle(id, on = !this.ids.has(id)) {
    if (on && this.ids.size < MOST) this.ids.add(id);
    else this.ids.delete(id);
    this.changed();
  }

  changed() {
    for (const box of document.querySelectorAll(".select input")) box.checked = this.ids.has(box.dataset.id);
    $("selection").hidden = !this.ids.size;
    document.body.classList.toggle("selecting", this.ids.size > 0);
    $("selected").textContent = `${this.ids.size} selected${this.ids.size === MOST ? ", the most at a time" : ""}`;
    lead($("download-selected"), `/v1/archive?${[...this.ids].map((id) => `id=${encodeURIComponent(id)}`).join("&")}`);
  }
}

// Arrows go from card to card, Home and End to the first and last one, X selects.
export function listenForKeys(selection) {
  $("grid").addEventListener("keydown", (event) => {
    const all = cards();
    const at = all.indexOf(event.target);
    if (at < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const next = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: all.length - 1 }[event.key];
    const to = all[next] ?? (event.key === "ArrowUp" || event.key === "ArrowDown" ? inNextRow(all, at, event.key === "ArrowDown" ? 1 : -1) : null);
    if (event.key.toLowerCase() === "x") selection()?.toggle(event.target.dataset.id);
    if (!to) return;
    event.preventDefault();
    to.focus();
  });
}

// The card of the row above or below whose middle is nearest.
function inNextRow(all, at, step) {
  const middle = (card) => card.getBoundingClientRect().left + card.offsetWidth / 2;
  const top = (card) => Math.round(card.getBoundingClientRect().top);
  let best = null;
  for (let each = at + step; all[each]; each += step) {
    if (top(all[each]) === top(all[at])) continue;
    if (best && top(all[each]) !== top(best)) break;
    if (!best || Math.abs(middle(all[each]) - middle(all[at])) < Math.abs(middle(best) - middle(all[at]))) best = all[each];
  }
  return best;
}
