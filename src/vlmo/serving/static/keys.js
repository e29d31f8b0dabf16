// The keys of the grid.

import { $ } from "./dom.js";
import { cards } from "./results.js";

// Arrows go from card to card, Home and End to the first and last one.
export function listenForKeys() {
  $("grid").addEventListener("keydown", (event) => {
    const all = cards();
    const at = all.indexOf(event.target);
    if (at < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const next = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: all.length - 1 }[event.key];
    const to = all[next] ?? (event.key === "ArrowUp" || event.key === "ArrowDown" ? inNextRow(all, at, event.key === "ArrowDown" ? 1 : -1) : null);
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
