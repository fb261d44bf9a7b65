// A question as the service takes it: by words, an item or a sound, or none: then what there is.

import { api } from "./api.js";
import * as filters from "./filters.js";

export const PAGE = 20;
export const NOTHING = { q: "", like: null, file: null };
export const NEWEST = "newest";

const TOO_DEEP = 422; // also what no first page is answered with
const JSON_TYPE = { "Content-Type": "application/json" };
const OF_A_QUESTION = ["without", "balance", "min_relevance", "unique"]; // filters that mean nothing without one

export const isAsked = ({ q, like, file }) => Boolean(q || like || file);

// Returns a page of hits, and what the next one is asked for ``after``; empty after the last. How
// deep one may look depends on the question: where that ends, ``end`` says so.
export async function find(question, { after = "", sort = NEWEST, limit = PAGE, ...options }) {
  if (!isAsked(question)) return list({ after, sort, limit }, options);
  const offset = Number(after);
  try {
    const { hits, ...told } = await search(question, { offset, limit }, options);
    return { hits, ...told, after: hits.length < limit ? "" : String(offset + hits.length) };
  } catch (error) {
    if (!offset || error.status !== TOO_DEEP) throw error; // the first page was answered
    return { hits: [], after: "", end: `Only the ${offset} nearest are ranked so: narrow the question to see others.` };
  }
}

export function filtersOfLists() {
  const chosen = filters.chosen();
  for (const name of OF_A_QUESTION) chosen.delete(name);
  return chosen;
}

// Says which members of a federation have no part in an answer; empty if it is whole.
export function lacking(partial = []) {
  return partial.map(({ member, reason }) => ` Without ${member}: ${reason}.`).join("");
}

async function list(page, options) {
  const asked = filtersOfLists();
  for (const [name, value] of Object.entries(page)) asked.set(name, value);
  const { found, encoder, next, partial } = await api(`v1/items?${asked}`, options);
  return { hits: found, encoder, partial, after: next };
}

function search({ q, like, file }, page, options) {
  const asked = filters.chosen();
  for (const [name, value] of Object.entries(page)) asked.set(name, value);
  if (like?.at !== undefined) asked.set("at_s", like.at);
  if (like && !q) return api(`v1/similar/${like.id}?${asked}`, options);
  if (q) asked.set("q", q);
  if (file) return api(`v1/search/sound?${asked}`, { method: "POST", body: file, ...options });
  if (!like) return api(`v1/search?${asked}`, options);
  const body = JSON.stringify({ ...filters.asObject(asked), like: like.id });
  return api("v1/search", { method: "POST", body, headers: JSON_TYPE, ...options });
}
