// The page of the API, made of openapi.json.

import { Problem, call } from "./api.js";
import { $, make } from "./dom.js";
import { showProblem } from "./results.js";

const EXAMPLES = {
  "/v1/embed": { texts: ["a red umbrella"] },
  "/v1/search": { text: "a red umbrella", top: 5, rerank: 32 },
  "/v1/similar": { id: "ID", top: 5 },
  "/v1/match": { pictures: ["BASE64"], texts: ["a red umbrella", "a dog"] },
  "/v1/vqa": { id: "ID", question: "what color is it?" },
  "/v1/classify": { pictures: ["BASE64"], labels: ["cat", "dog"], template: "a photo of a {}" },
};

function kindOf(field) {
  const kinds = field.anyOf ? field.anyOf.filter((each) => each.type !== "null") : [field];
  const [kind] = kinds;
  const range = [kind.minimum, kind.maximum].every((each) => each !== undefined) ? `, ${kind.minimum} to ${kind.maximum}` : "";
  const many = kind.type === "array" ? ` of ${kind.items.type}${kind.maxItems ? `, at most ${kind.maxItems}` : ""}` : "";
  return `${kind.type}${range}${many}${kind.maxLength ? `, at most ${kind.maxLength} characters` : ""}`;
}

function table(schema) {
  const needed = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties).map(([name, field]) => {
    const inner = field.anyOf?.find((each) => each.description);
    const text = field.description ?? inner?.description ?? field.items?.description ?? "";
    const usual = field.default !== undefined && field.default !== null && !Array.isArray(field.default) ? ` By default ${field.default}.` : "";
    const cells = [make("code", {}, name), `${kindOf(field)}${needed.has(name) ? ", required" : ""}`, `${text}${usual}`];
    return make("tr", {}, ...cells.map((cell) => make("td", {}, cell)));
  });
  const head = make("tr", {}, ...["field", "kind", "meaning"].map((name) => make("th", { scope: "col" }, name)));
  return make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Fields" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

function route(path, method, operation) {
  const title = make("h2", {}, make("span", { className: "method" }, method.toUpperCase()), path);
  const parts = [title, make("p", {}, operation.description ?? operation.summary)];
  const body = operation.requestBody?.content["application/json"]?.schema;
  if (body) parts.push(table(body));
  const data = EXAMPLES[path] ? ` \\\n  -H 'Content-Type: application/json' -d '${JSON.stringify(EXAMPLES[path])}'` : "";
  parts.push(make("pre", { tabIndex: 0 }, `curl ${location.origin}${path.replace(/\{\w+\}/, "ID")}${data}`));
  return make("article", {}, ...parts);
}

try {
  const { paths } = await call("/openapi.json");
  const routes = Object.entries(paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, each]) => route(path, method, each)));
  $("routes").replaceChildren(...routes);
} catch (problem) {
  showProblem(problem instanceof Problem ? problem : new Problem("The description cannot be shown."), { onRetry: () => location.reload() });
}
