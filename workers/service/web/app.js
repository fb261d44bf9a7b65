// The search page. It asks only the service's public interface, so it is an example as well.

import { hideAdding, showAdding } from "./adding/adding.js";
import { api, keysComeFrom } from "./api.js";
import { filtersOfLists, find, isAsked, lacking, NEWEST, NOTHING } from "./asking.js";
import { hideFacets, showFacets } from "./browsing/facets.js";
import { hideMap, paintMap, showMap } from "./browsing/map.js";
import { hideRepair, showRepair } from "./browsing/repair.js";
import { $, make } from "./dom.js";
import * as filters from "./filters.js";
import { card } from "./hits.js";
import { NEAREST } from "./judging/relevance.js";
import { verdictKeys } from "./judging/verdicts.js";
import { clock, jump } from "./moments.js";
import { stop, toggle } from "./sound.js";
import { restore, select, selectAll, selected, tell } from "./taking/selection.js";
import { keepSelection, toTheBar } from "./taking/taking.js";

const SLOW_MS = 400; // later than this, it is told that something is done
const COUNT_EVERY_MS = 5000;
const VIEWS = { map: hideMap, repair: hideRepair, add: hideAdding }; // and how each is hidden
const LIT = 200; // answers that the map lights up
const IN_ADDRESS = 100; // selected sounds that an address holds: some servers refuse longer ones
const JSON_TYPE = { "Content-Type": "application/json" };
const NOTHING_INDEXED =
  "Nothing is indexed yet. Put a sound into the bucket, and it appears here within seconds.";

const form = $("#search"), list = $("#results"), message = $("#message"), more = $("#more");
let question = NOTHING; // words, and an item {id, title} or a file that hits shall be like
let view = ""; // or one of VIEWS
let sort = NEWEST; // of what is shown without a question
let following = ""; // what the next page is asked for; empty after the last
let running = new AbortController();
let unanswered = false; // the question failed because nobody answered

// Asking

async function run(asked, { remember = true, quiet = false } = {}) {
  question = { ...NOTHING, ...asked };
  running.abort();
  running = new AbortController();
  showQuestion();
  if (remember) history.pushState(null, "", address());
  showView();
  if (view === "map") return lightUp();
  if (view === "repair") return repair();
  if (view === "add") return showAdding();
  list.setAttribute("aria-busy", "true");
  more.hidden = true;
  browse({ quiet });
  const { signal } = running, { file } = question;
  const patience = setTimeout(() => say(file ? `Listening to ${file.name} …` : "Searching …"), SLOW_MS);
  signal.addEventListener("abort", () => clearTimeout(patience));
  following = "";
  await show({ quiet });
  clearTimeout(patience);
}

// Shows the next page of answers, or the first.
async function show({ focus = false, quiet = false } = {}) {
  const { signal } = running, first = following ? list.children.length : 0;
  try {
    const { hits, encoder, after, nothing, partial, end = "" } = await find(question, { after: following, sort, signal, quiet });
    if (signal.aborted) return; // a newer question was asked meanwhile
    if (!first) empty();
    following = after;
    list.append(...hits.map((hit) => card(hit, { asked: words(), ...does })));
    more.hidden = !following;
    $("#end").textContent = end;
    tell();
    if (encoder || !first) $("#encoder").textContent = encoder ? `Encoder ${encoder}` : "";
    const said = hits.length ? nothing && NEAREST || "" : nothingFound();
    if (!first) say(partial?.length ? make("span", "", said, lacking(partial)) : said);
    if (!first || focus) choose(list.children[first], { focus });
    unanswered = false;
  } catch (error) {
    if (signal.aborted) return;
    unanswered = error.status === 0;
    if (!first) empty();
    complain(error);
  }
  list.removeAttribute("aria-busy");
}

// Views: the list of what was found, or the map with its answers lit up.

function showView() {
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  for (const [name, hide] of Object.entries(VIEWS)) if (name !== view) hide();
  if (!view) return;
  empty();
  list.removeAttribute("aria-busy");
  more.hidden = true;
  hideFacets();
  for (const part of ["#start", "#browse"]) $(part).hidden = true;
  say("");
}

function lightUp() {
  const { signal } = running, isPlain = !isAsked(question) && ![...filters.chosen()].length;
  const answers = async () => (isPlain ? [] : (await find(question, { limit: LIT, sort, signal })).hits);
  const folder = filters.chosen().get("prefix") || "";
  showMap({ folder, find: answers, card: (hit) => card(hit, { asked: words(), ...does }), onError: complain, signal });
}

function repair() {
  const onWordless = () => { view = ""; filters.clear(); filters.set("has_text", "no"); run(NOTHING); };
  showRepair({ onWordless, onError: complain, signal: running.signal });
}

$("nav").addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return; // that opens another tab
  event.preventDefault();
  view = link.dataset.view;
  run(question);
});

// Without a question there is what one may look through.
async function browse({ quiet }) {
  const { signal } = running, isBrowsing = !isAsked(question);
  $("#start").hidden = !isBrowsing || Boolean([...filters.chosen()].length);
  $("#browse").hidden = !isBrowsing;
  if (!isBrowsing) return hideFacets();
  try {
    await showFacets(filtersOfLists(), { signal, quiet, onChoose: narrow });
  } catch { // the list tells what is wrong
    if (!signal.aborted) hideFacets();
  }
}

function narrow(chosen) {
  for (const [name, value] of Object.entries(chosen)) filters.set(name, value);
  filtersChanged();
}

const does = {
  onSimilar: (like) => { view = ""; run({ like }); scrollTo({ top: 0 }); },
  onTag: (name, value) => { filters.add(name, value); filtersChanged(); },
  onError: (text) => say(text, { isError: true }),
};

const words = () => ({ q: question.q, without: filters.chosen().get("without"), alone: !question.like && !question.file });

function empty() {
  stop();
  for (const part of [list, $("#end")]) part.replaceChildren();
}

function nothingFound() {
  if (![...filters.chosen()].length) return NOTHING_INDEXED;
  return make("span", "", "No sound passes these filters. ", action("Clear the filters", clearFilters));
}

function complain(error) {
  more.hidden = true;
  const text = make("span", "", `${error.message} `);
  if (error.mayPass) text.append(action("Try again", () => run(question, { remember: false })));
  say(text, { isError: true });
}

function action(text, act) {
  const button = make("button", "plain", text);
  button.type = "button";
  button.addEventListener("click", act);
  return button;
}

function say(content, { isError = false } = {}) {
  message.replaceChildren(content);
  message.classList.toggle("error", isError);
}

// The question, in the form and in the address

function showQuestion() {
  const { q, like, file } = question;
  form.q.value = q;
  $("#by").hidden = !like && !file;
  const at = like?.at === undefined ? "" : ` at ${clock(like.at)}`;
  $("#by .text").textContent = file ? `Sounds like ${file.name}` : `Like ${like?.title || "this sound"}${at}`;
  form.q.placeholder = like || file ? "and words, if you like" : "Describe a sound";
  filters.showChosen(filtersChanged);
  document.title = [q, like?.title, file?.name].filter(Boolean).concat("audiofuse").join(" · ");
}

function address() {
  const parameters = filters.chosen();
  if (view) parameters.set("view", view);
  if (question.q) parameters.set("q", question.q);
  if (question.like) parameters.set("like", question.like.id);
  if (question.like?.title) parameters.set("title", question.like.title);
  if (question.like?.at !== undefined) parameters.set("at", question.like.at);
  const ids = selected().slice(0, IN_ADDRESS).map(({ id }) => id);
  if (ids.length) parameters.set("selected", ids.join(","));
  if (sort !== NEWEST) parameters.set("sort", sort);
  return String(parameters) ? `?${parameters}` : location.pathname;
}

function fromAddress() {
  const given = new URLSearchParams(location.search);
  filters.take(given);
  view = Object.hasOwn(VIEWS, given.get("view")) ? given.get("view") : "";
  const id = given.get("like"), field = $("#browse select");
  field.value = given.get("sort") || NEWEST;
  sort = field.value || NEWEST; // there may be no such order
  field.value = sort;
  const like = id && { id, title: given.get("title") }, at = Number.parseFloat(given.get("at"));
  if (like && at >= 0) like.at = at;
  run({ q: given.get("q") || "", like }, { remember: false, quiet: true });
}

function sortBy(order) {
  sort = order;
  run(question);
}

$("#browse select").addEventListener("change", ({ target }) => sortBy(target.value));
$("#surprise").addEventListener("click", () => {
  $("#browse select").value = "random";
  sortBy("random");
});

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (view !== "map") view = ""; // there is nothing to ask
  run({ ...question, q: form.q.value.trim() });
});
$("#by button").addEventListener("click", () => { run({ q: form.q.value.trim() }); form.q.focus(); });
$("#start").addEventListener("click", ({ target }) => {
  if (target.matches("button")) run({ q: target.textContent });
});
addEventListener("popstate", fromAddress);

// The next page comes before the end of this one is reached, or by the button.

let coming = null;

function showMore(options) {
  coming ??= show(options).finally(() => {
    coming = null;
    ends.unobserve(more); // it may be in view still: observed anew, that is told once more
    ends.observe(more);
  });
}

more.addEventListener("click", () => showMore({ focus: true }));
const ends = new IntersectionObserver(([{ isIntersecting }]) => { if (isIntersecting && following) showMore(); }, { rootMargin: "600px" });
ends.observe(more);

// What is selected stays so whatever is asked; an address brings it back when the page is loaded.

async function restoreSelection() {
  const ids = (new URLSearchParams(location.search).get("selected") || "").split(",").filter(Boolean);
  if (!ids.length) return;
  try {
    const body = JSON.stringify({ ids: ids.slice(0, IN_ADDRESS) });
    restore((await api("v1/items", { method: "POST", body, headers: JSON_TYPE })).items);
  } catch (error) {
    say(`What was selected is not known any more. ${error.message}`, { isError: true });
  }
}

// Filters

function filtersChanged() {
  run({ ...question, q: form.q.value.trim() });
}

function clearFilters() {
  filters.clear();
  filtersChanged();
}

function openFilters(open = $("#filters").hidden) {
  $("#filters").hidden = !open;
  $("#open-filters").setAttribute("aria-expanded", open);
  if (open) form.elements.keyword.focus();
}

$("#open-filters").addEventListener("click", () => openFilters());
$("#filters").addEventListener("change", filtersChanged);
form.addEventListener("reset", (event) => { event.preventDefault(); clearFilters(); });

// A sound of one's own

$("#file").addEventListener("change", ({ target }) => {
  if (target.files[0]) run({ file: target.files[0] });
  target.value = "";
});
let depth = 0; // dragenter and dragleave come for every element under the pointer
const dropping = (on) => document.body.classList.toggle("dropping", on);
const bringsFile = (event) => event.dataTransfer?.types.includes("Files");
function drag(event, step) {
  if (!bringsFile(event)) return;
  depth += step;
  dropping(depth > 0);
}
addEventListener("dragenter", (event) => drag(event, 1));
addEventListener("dragleave", (event) => drag(event, -1));
addEventListener("dragover", (event) => bringsFile(event) && event.preventDefault());
addEventListener("drop", (event) => {
  if (!bringsFile(event)) return; // words go into the field that they are dropped on
  event.preventDefault();
  depth = 0;
  dropping(false);
  const [file] = event.dataTransfer.files;
  if (file) run({ file });
});

// Keys

const current = () => $(".hit[aria-current]");

function choose(node, { focus = true } = {}) {
  if (!node) return;
  current()?.removeAttribute("aria-current");
  node.setAttribute("aria-current", "true");
  if (focus) { node.focus({ preventScroll: true }); node.scrollIntoView({ block: "nearest" }); }
}

list.addEventListener("focusin", ({ target }) => choose(target.closest(".hit"), { focus: false }));
list.addEventListener("pointerdown", ({ target }) => choose(target.closest(".hit"), { focus: false }));

const next = () => choose(document.activeElement.closest(".hit") ? current().nextElementSibling : current());
const KEYS = {
  "/": () => { form.q.focus(); form.q.select(); },
  f: () => openFilters(),
  ArrowDown: next,
  ArrowRight: () => jump(current(), 1),
  ArrowLeft: () => jump(current(), -1),
  j: next,
  " ": () => toggle(current()),
  m: () => $(".similar", current()).click(),
  x: () => select(current()),
  X: () => select(current(), true, { range: true }),
  a: selectAll,
  t: toTheBar,
  ...verdictKeys(current),
};
KEYS.ArrowUp = KEYS.k = () => {
  const above = current().previousElementSibling;
  if (above) choose(above);
  else KEYS["/"]();
};
const NEEDS_HIT = new Set(["ArrowDown", "ArrowUp", "ArrowLeft", "ArrowRight", "j", "k", " ", "m", "x", "X", "a", "y", "n", "s"]);

addEventListener("keydown", (event) => {
  const { key, target } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || target.closest("dialog")) return;
  if (key === "Escape") { stop(); target.blur(); return; }
  const writes = target.matches("input:not([type=range], [type=checkbox], [type=file]), select");
  if (writes && !(target === form.q && key === "ArrowDown")) return;
  if (key === " " && target.closest("button, a, [type=checkbox], [type=file]")) return;
  if (key.startsWith("Arrow") && target.closest("#filters")) return;
  if (["ArrowLeft", "ArrowRight"].includes(key) && target.matches("[type=range]")) return;
  if (!KEYS[key] || (NEEDS_HIT.has(key) && !current())) return;
  event.preventDefault();
  KEYS[key]();
});

// The key of the service

keysComeFrom((refused) => new Promise((resolve) => {
  const dialog = $("#key"), field = $("[name=key]", dialog);
  field.value = "";
  $(".refused", dialog).hidden = !refused;
  dialog.returnValue = "";
  const close = () => resolve(dialog.returnValue === "use" ? field.value.trim() : "");
  dialog.addEventListener("close", close, { once: true });
  dialog.showModal();
}));
$("#key [type=button]").addEventListener("click", () => $("#key").close(""));

// How many sounds there are

async function count() {
  const shown = $("#count");
  try {
    const { items } = await api("v1/items", { quiet: true });
    shown.textContent = `${items.toLocaleString("en")} ${items === 1 ? "sound" : "sounds"}`;
    shown.className = "live";
    if (unanswered) run(question, { remember: false });
  } catch (error) {
    shown.textContent = error.status === 401 ? "needs a key" : "not connected";
    shown.className = error.status === 401 ? "" : "away";
  }
}

async function keepCounting() {
  if (!document.hidden) await count();
  setTimeout(keepCounting, COUNT_EVERY_MS);
}

fromAddress();
keepCounting();
await restoreSelection();
keepSelection(() => { history.replaceState(null, "", address()); paintMap(); });
