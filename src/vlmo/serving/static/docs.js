// The page of the API, made of openapi.json.

import { Problem, call } from "./api.js";
import { $, make } from "./dom.js";
import { showProblem } from "./results.js";

const EXAMPLES = {
  "/v1/search": { text: "a red umbrella", top: 5, rerank: 32 },
  "/v1/similar": { id: "ID", top: 5 },
  "/v1/vqa": { id: "ID", question: "what color is it?" },
  "/v1/caption": { id: "ID" },
  "/v1/embeddings": { input: ["a red umbrella", { image: "BASE64" }] },
  "/v1/rerank": { query: "a red umbrella", documents: [{ image: "BASE64" }], top_n: 5 },
  "/v2/rerank": { query: "a red umbrella", documents: ["data:image/jpeg;base64,BASE64"], top_n: 5 },
};

let schemas = {};

// The schema itself, where another one names it, and without null.
function resolved(field) {
  const kind = field.anyOf ? { ...field.anyOf.find((each) => each.type !== "null"), description: describe(field) } : field;
  return kind.$ref ? { ...schemas[kind.$ref.split("/").at(-1)], ...(kind.description && { description: kind.description }) } : kind;
}

const describe = (field) => field.description ?? field.anyOf?.find((each) => each.description)?.description ?? field.items?.description ?? "";
const count = (low, high, what) => (low > 1 ? `${low} to ${high} ${what}` : `at most ${high} ${what}`);

function rangeOf(kind) {
  const parts = [
    kind.minimum !== undefined && `at least ${kind.minimum}`,
    kind.exclusiveMinimum !== undefined && `above ${kind.exclusiveMinimum}`,
    kind.maximum !== undefined && `at most ${kind.maximum}`,
    kind.exclusiveMaximum !== undefined && `below ${kind.exclusiveMaximum}`,
    kind.maxLength !== undefined && count(kind.minLength, kind.maxLength, "characters"),
    kind.maxItems !== undefined && count(kind.minItems, kind.maxItems, "of them"),
    kind.enum && kind.enum.join(" or "),
  ];
  return parts.filter(Boolean).map((part) => `, ${part}`).join("");
}

function typeOf(kind) {
  if (kind.type === "array") return `list of ${kindOf(kind.items)}`;
  return kind.type ?? "anything";
}

function kindOf(field) {
  const kind = resolved(field);
  const empty = field.anyOf?.some((each) => each.type === "null") ? " or null" : "";
  return `${typeOf(kind)}${rangeOf(kind)}${empty}`;
}

// ---- tables

function table(name, columns, rows) {
  const head = make("tr", {}, ...columns.map((column) => make("th", { scope: "col" }, column)));
  const body = rows.map((cells) => make("tr", {}, ...cells.map((cell) => make("td", {}, cell))));
  const whole = make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
  return [make("h3", {}, name), make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": name }, whole)];
}

function usual(field) {
  const value = field.default;
  return value === undefined || value === null || Array.isArray(value) ? "" : ` By default ${value}.`;
}

function bodyTable(content) {
  const json = content["application/json"].schema;
  const needed = new Set(json.required ?? []);
  const rows = Object.entries(json.properties).map(([name, field]) => [
    make("code", {}, name),
    `${kindOf(field).replace(/ or null$/, "")}${needed.has(name) ? ", required" : ""}`,
    `${describe(field)}${usual(field)}`,
  ]);
  return table("Body", ["field", "value", "meaning"], rows);
}

function answerPart({ content }) {
  return [make("h3", {}, "Answer"), make("p", {}, Object.keys(content ?? {})[0] ?? "")];
}

function statusTable(responses) {
  const meaning = { "Successful Response": "The answer.", "Service Unavailable": "The server is stopping." };
  return table("Statuses", ["status", "meaning"], Object.entries(responses).map(([status, each]) => [make("code", {}, status), meaning[each.description] ?? each.description]));
}

function route(path, method, operation) {
  const title = make("h2", {}, make("span", { className: "method" }, method.toUpperCase()), path);
  const parts = [title, make("p", {}, operation.description ?? operation.summary)];
  const data = EXAMPLES[path] ? ` \\\n  -H 'Content-Type: application/json' -d '${JSON.stringify(EXAMPLES[path])}'` : "";
  parts.push(make("pre", { tabIndex: 0 }, `curl ${location.origin}${path.replace(/\{\w+\}/, "ID")}${data}`));
  if (operation.requestBody) parts.push(...bodyTable(operation.requestBody.content));
  parts.push(...answerPart(operation.responses["200"]), ...statusTable(operation.responses));
  return make("article", {}, ...parts);
}

try {
  const { paths, components } = await call("/openapi.json");
  schemas = components.schemas;
  const routes = Object.entries(paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, each]) => route(path, method, each)));
  $("routes").replaceChildren(...routes);
} catch (problem) {
  showProblem(problem instanceof Problem ? problem : new Problem("The description cannot be shown."), { onRetry: () => location.reload() });
}
