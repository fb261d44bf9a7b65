// What sounds have in common, with how many have it: each value narrows what is shown.

import { api } from "../api.js";
import { $, make } from "../dom.js";

const SHOWN = 10; // values of each facet
const panel = $("#facets");
panel.open = matchMedia("(min-width: 44rem)").matches; // on a phone sounds come first

const KINDS = { // what a facet is called, and the filters that a value of it sets
  labels: ["Labels", ({ value }) => [value, { label: value }]],
  keywords: ["Keywords", ({ value }) => [value, { keyword: value }]],
  folders: ["Folders", ({ value }) => [value, { prefix: value }]],
  lengths: ["Length", ({ min_duration: least, max_duration: most }) => [
    most === null ? `over ${span(least)}` : `${least ? `${span(least)} to ` : "under "}${span(most)}`,
    { min_duration: least || "", max_duration: most ?? "" },
  ]],
  years: ["Changed in", ({ year }) => [String(year), { since: `${year}-01-01`, until: `${year}-12-31` }]],
  has_text: ["Words", ({ value }) => [value === "yes" ? "with words" : "without words", { has_text: value }]],
};

// A span that ends a millisecond before the next begins is told as ending there.
function span(seconds) {
  const whole = Math.round(seconds * 100) / 100;
  return whole < 60 ? `${whole} s` : `${Math.round(whole / 60)} min`;
}

export async function showFacets(options, { signal, quiet, onChoose }) {
  const asked = new URLSearchParams(options);
  asked.set("limit", SHOWN);
  const found = await api(`v1/facets?${asked}`, { signal, quiet });
  const rows = Object.entries(KINDS).map(([name, [title, read]]) => {
    const values = (found[name] || []).map((each) => [...read(each), each.items]);
    return values.length > 1 || (values.length && name !== "has_text") ? row(title, values, onChoose) : "";
  });
  $("div", panel).replaceChildren(...rows);
  panel.hidden = !rows.some(Boolean);
}

function row(title, values, onChoose) {
  const chips = values.map(([text, chosen, count]) => {
    const button = make("button", "", make("span", "", text), make("span", "number", count.toLocaleString("en")));
    button.type = "button";
    button.setAttribute("aria-label", `${title}: ${text}, ${count}`);
    button.addEventListener("click", () => onChoose(chosen));
    return make("li", "", button);
  });
  return make("div", "facet", make("h3", "", title), make("ul", "", ...chips));
}

export function hideFacets() {
  panel.hidden = true;
}
