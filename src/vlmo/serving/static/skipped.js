// What the index leaves out: a count in the head of the page, and a dialog with the reasons.

import { Problem, call } from "./api.js";
import { $, make } from "./dom.js";

const UNREAD = "this format is not read; convert them to JPEG or PNG";

export function showSkipped({ num_skipped: number, is_behind: isBehind }) {
  const parts = [isBehind && "not up to date", number && `${number.toLocaleString("en")} left out`].filter(Boolean);
  $("skipped").hidden = !parts.length;
  $("skipped").textContent = parts.join(", ");
  $("skipped").onclick = () => open({ number, isBehind });
}

async function open({ number, isBehind }) {
  $("skipped-title").textContent = number ? `${number.toLocaleString("en")} left out` : "Not up to date";
  $("skipped-behind").hidden = !isBehind;
  $("skipped-list").replaceChildren();
  $("skipped-dialog").showModal();
  try {
    const { files, formats } = await call("/v1/skipped");
    const unread = Object.entries(formats).map(([suffix, count]) => row(`${count.toLocaleString("en")} ${suffix}`, UNREAD));
    const more = number - files.length - Object.values(formats).reduce((sum, count) => sum + count, 0);
    const rows = [...unread, ...files.map(({ name, reason }) => row(name, reason))];
    if (more > 0) rows.push(row(`${more.toLocaleString("en")} more`, "quarantine.jsonl in the folder of the index has all"));
    $("skipped-list").replaceChildren(...rows);
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    $("skipped-list").replaceChildren(row(problem.message, problem.hint));
  }
}

const row = (name, reason) => make("li", {}, make("strong", {}, name), make("span", {}, reason));
