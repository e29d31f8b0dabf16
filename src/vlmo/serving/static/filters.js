// Fields for the index's columns, and the filter that they make.

import { $, cross, make } from "./dom.js";

const KINDS = { "true or false": "truth", number: "number", text: "text" };

// Columns of photographs, which have fields of their own, and the names of these in the address of the page.
const PHOTOS = ["taken", "latitude", "longitude", "album"];
export const SOURCE = "f.taken_from"; // its field: "file" where an image has no date of its own
export const PHOTO_FIELDS = ["from", "to", "near", "album", "sort"];

const quoted = (text) => `'${text.replaceAll("'", "''")}'`;
const column = (name) => (/^[a-z_][a-z0-9_]*$/.test(name) ? name : `\`${name}\``);

export class Filters {
  constructor(columns, { onChange }) {
    const known = Object.entries(columns).map(([name, type]) => [name, KINDS[type]]).filter(([, kind]) => kind);
    this.columns = known.filter(([name]) => !PHOTOS.includes(name));
    const fields = [...photoFields(columns), ...this.columns.map(field)];
    this.onChange = onChange;
    $("filters").hidden = !fields.length;
    if (fields.length) $("filter-fields").replaceChildren(...fields, buttons(this));
    document.addEventListener("click", (event) => {
      if (!$("filters").contains(event.target)) $("filters").open = false;
    });
    $("filters").addEventListener("keydown", (event) => {
      if (event.key === "Escape" && $("filters").open) {
        $("filters").open = false;
        $("filters").querySelector("summary").focus();
      }
      if (event.key === "Enter" && event.target.matches("input")) {
        event.preventDefault();
        this.apply();
      }
    });
  }

  apply() {
    $("filters").open = false;
    this.onChange();
  }

  // What the fields hold, as the address of the page carries it: "f.style", "f.year.from", ...
  get values() {
    const fields = [...$("filter-fields").querySelectorAll("[name]")];
    return Object.fromEntries(fields.filter((each) => each.value.trim()).map((each) => [each.name, each.value.trim()]));
  }

  set values(values) {
    for (const each of $("filter-fields").querySelectorAll("[name]")) each.value = values[each.name] ?? "";
    this.showChips();
  }

  get photos() {
    return Object.fromEntries(Object.entries(this.values).filter(([name]) => PHOTO_FIELDS.includes(name)));
  }

  get where() {
    const { values } = this;
    const terms = this.columns.flatMap(([name, kind]) => {
      const value = values[`f.${name}`];
      if (kind === "text") return value ? [`contains(lower(${column(name)}), ${quoted(value.toLowerCase())})`] : [];
      if (kind === "truth") return value ? [`${column(name)} = ${value}`] : [];
      return [["from", ">="], ["to", "<="]].flatMap(([end, sign]) => {
        const number = Number(values[`f.${name}.${end}`] ?? "");
        return values[`f.${name}.${end}`] && Number.isFinite(number) ? [`${column(name)} ${sign} ${number}`] : [];
      });
    });
    return terms.join(" and ") || null;
  }

  showChips() {
    const given = Object.entries(this.values);
    $("filter-count").textContent = given.length ? ` (${given.length})` : "";
    $("chips").replaceChildren(...given.map(([name, value]) => this.chip(name, value)));
  }

  chip(name, value) {
    const words = name.replace(/^f\./, "").replace(/\.from$/, " from").replace(/\.to$/, " to");
    const shown = name === SOURCE ? "date unknown" : `${words}: ${value === "true" ? "yes" : value === "false" ? "no" : value}`;
    const remove = () => {
      const rest = this.values;
      delete rest[name];
      this.values = rest;
      this.onChange();
      $("words").focus();
    };
    return make("button", { type: "button", className: `chip of-${name.replace(/\W/g, "-")}`, "aria-label": `Remove the filter ${shown}`, onclick: remove }, shown, cross());
  }
}

function photoFields(columns) {
  const fields = [];
  if (columns.taken === "text") {
    const ends = ["from", "to"].map((name) => labelled(name, make("input", { name, type: "date" })));
    const orders = [["", "the best first"], ["date", "the newest first"]].map(([value, text]) => make("option", { value }, text));
    fields.push(make("fieldset", {}, make("legend", {}, "taken"), ...ends), labelled("order", make("select", { name: "sort" }, ...orders)));
  }
  if (columns.album === "text") fields.push(labelled("album", make("input", { name: "album", type: "text", maxLength: 200 })));
  if (columns.latitude === "number") {
    fields.push(labelled("near", make("input", { name: "near", type: "text", maxLength: 60, placeholder: "48.85,2.35,20km" })));
  }
  return fields;
}

function field([name, kind]) {
  if (`f.${name}` === SOURCE) {
    const options = [["", "any"], ["file", "unknown: of the file"]].map(([value, text]) => make("option", { value }, text));
    return labelled("date", make("select", { name: SOURCE }, ...options));
  }
  if (kind === "text") return labelled(name, make("input", { name: `f.${name}`, type: "text", maxLength: 100 }));
  if (kind === "truth") {
    const options = [["", "any"], ["true", "yes"], ["false", "no"]].map(([value, text]) => make("option", { value }, text));
    return labelled(name, make("select", { name: `f.${name}` }, ...options));
  }
  const ends = ["from", "to"].map((end) =>
    make("label", {}, make("span", { className: "hidden" }, `${name} ${end}`), make("input", { name: `f.${name}.${end}`, type: "number", step: "any", placeholder: end })),
  );
  return make("fieldset", {}, make("legend", {}, name), ...ends);
}

const labelled = (name, input) => make("label", {}, make("span", {}, name), input);

function buttons(filters) {
  const clear = () => {
    filters.values = {};
    filters.apply();
  };
  return make(
    "div",
    { className: "filter-buttons" },
    make("button", { type: "button", className: "second", onclick: clear }, "Clear"),
    make("button", { type: "button", className: "go", onclick: () => filters.apply() }, "Apply"),
  );
}
