// The filters: fields of the form, in the address, and as chips that are taken away one by one.

import { $, make } from "./dom.js";

const percent = (share) => `${Math.round(share * 100)} %`;
const TOLD = { // what a chip says
  keyword: (value) => `keyword ${value}`,
  label: (value) => `label ${value}`,
  without: (value) => `not like ${value}`,
  prefix: (value) => `in ${value}`,
  min_duration: (value) => `at least ${value} s`,
  max_duration: (value) => `at most ${value} s`,
  since: (value) => `since ${value}`,
  until: (value) => `until ${value}`,
  has_text: (value) => (value === "yes" ? "with metadata" : "without metadata"),
  balance: (value) => (value > EVEN ? `${percent(value)} words` : `${percent(1 - value)} sound`),
  min_relevance: (value) => `at least ${percent(value)} probable`,
  unique: () => "copies hidden",
};
const MANY = ["keyword", "label"]; // several, with commas between
const EVEN = "0.5";

const form = $("#search");

export function chosen() {
  const values = new FormData(form);
  const pairs = Object.keys(TOLD).flatMap((name) => {
    const value = (values.get(name) || "").trim();
    if (!value || (name === "balance" && value === EVEN)) return [];
    return MANY.includes(name) ? split(value).map((each) => [name, each]) : [[name, value]];
  });
  return new URLSearchParams(pairs);
}

export function asObject(parameters) {
  const names = [...new Set(parameters.keys())];
  return Object.fromEntries(names.map((name) => [
    name, MANY.includes(name) ? parameters.getAll(name) : parameters.get(name),
  ]));
}

export function take(parameters) {
  for (const name of Object.keys(TOLD)) {
    const field = form.elements[name], given = parameters.getAll(name).join(", ");
    if (field.type === "checkbox") field.checked = Boolean(given);
    else field.value = given || (name === "balance" ? EVEN : "");
  }
}

export function add(name, value) {
  const field = form.elements[name], present = split(field.value);
  if (!present.includes(value)) field.value = [...present, value].join(", ");
}

export function set(name, value) {
  if (MANY.includes(name)) add(name, value);
  else form.elements[name].value = value;
}

export function clear() {
  take(new URLSearchParams());
}

export function showChosen(onChange) {
  const active = [...chosen()];
  $("#clear").hidden = !active.length;
  $("#active").replaceChildren(...active.map(([name, value]) => {
    const remove = make("button", "", "×");
    remove.type = "button";
    remove.setAttribute("aria-label", `Remove the filter: ${TOLD[name](value)}`);
    remove.addEventListener("click", () => { drop(name, value); onChange(); });
    return make("li", "chip", make("span", "text", TOLD[name](value)), remove);
  }));
}

function drop(name, value) {
  const rest = [...chosen()].filter(([n, v]) => n !== name || v !== value);
  take(new URLSearchParams(rest));
}

const split = (text) => text.split(",").map((each) => each.trim()).filter(Boolean);
