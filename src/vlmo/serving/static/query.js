// The query line: words, and parts that are added or subtracted, maybe with a weight: dog +"on a beach" -0.5*people

import { Problem } from "./api.js";

const TOKEN = /(?:[+-](?:[\d.]+\*)?)?"[^"]*"(?!\S)|\S+/g;
const PART = /^([+-])(?:(\d+(?:\.\d+)?)\*)?(?:"([^"]*)"|((?!\d+(?:\.\d+)?\*)[^"*\s][^*\s]*))$/;
const FORM = 'Write -people, -0.5*people or +"on a beach": a sign, and words right after it. Quotes around it all make it plain words.';

const tokens = (line) => [...line.replaceAll(/[“”„]/g, '"').matchAll(TOKEN)].map(([token]) => token);
export const hasParts = (line) => tokens(line).some((token) => /^[+-]/.test(token));

function parse(line) {
  const words = [];
  const parts = [];
  for (const token of tokens(line)) {
    if (!/^[+-]/.test(token)) {
      words.push(token.replace(/^"([^"]*)"$/, "$1"));
      continue;
    }
    const [, sign, weight, quoted, single] = PART.exec(token) ?? [];
    const text = (quoted ?? single ?? "").trim();
    if (!text) throw new Problem(`${token} is no part of a query.`, { hint: FORM, status: 400 });
    parts.push({ text, weight: Number(sign + (weight ?? 1)) });
  }
  return { text: words.join(" ").trim(), parts };
}

// What the service is asked for a line and an image (a `data:` address), one of which may be missing. With `isLike`,
// where images of the index are searched by, the line may have parts alone.
export function queryOf(line, image, { isLike }) {
  const { text, parts } = parse(line);
  if (text) return { text, parts: image ? [{ image, weight: 1 }, ...parts] : parts };
  if (image) return { image, parts };
  const first = parts.find(({ weight }) => weight > 0); // only the direction of the sum counts
  if (!first && isLike) return { parts };
  if (!first && parts.length) throw new Problem("There is nothing to subtract from.", { hint: 'Put words before it: dog -people', status: 400 });
  if (!first) return {};
  return { text: first.text, parts: parts.filter((each) => each !== first).map((each) => ({ ...each, weight: each.weight / first.weight })) };
}
