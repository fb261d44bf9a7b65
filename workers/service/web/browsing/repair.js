// Repair: why a sound is found or not, what was rejected, what is there twice, what has no words.

import { api } from "../api.js";
import { $, make } from "../dom.js";
import { restore, tell } from "../taking/selection.js";
import { beginNaming } from "./labels.js";

const SHOWN = 50; // rejected objects, at first and with each "More"
const GROUPS = 20; // groups of the same content, likewise; of what sounds alike when looking pauses
const AT_ONCE = 50; // keys of one request
const ALIKE = 0.98; // cosine of what sounds alike
const JSON_TYPE = { "Content-Type": "application/json" };
const REASONS = {
  empty: "There are no bytes in it.",
  not_audio: "It is no sound file.",
  damaged: "It is cut off or corrupt: upload it again.",
  silent: "Nothing is to be heard in it.",
  too_short: "It is shorter than a twentieth of a second.",
  too_long: "It is longer than this deployment takes.",
  too_large: "It is larger than this deployment takes.",
  not_finite: "It holds samples that are no numbers.",
  bad_sidecar: "Its sidecar cannot be read; the sound itself is found.",
  unreadable: "The storage does not let us read it.",
  hung: "Decoding it does not end.",
  crashed: "Decoding it ends the decoder.",
  no_memory: "It does not fit into memory.",
  bug: "It fails for a reason that nobody knew of: the log has it.",
};

const section = $("#repair");
let fails = () => {}, signal = null;
let reason = ""; // whose letters are shown; empty: all
let before = 0, alikeAfter = ""; // where the next pages begin

export async function showRepair({ onError, onWordless, signal: until }) {
  [fails, signal] = [onError, until];
  section.hidden = false;
  $("#wordless", section).onclick = onWordless;
  beginNaming({ onError, signal });
  await Promise.all([rejected(), same(""), countWordless()].map((part) => part.catch((error) => {
    if (!signal.aborted) fails(error);
  })));
}

export function hideRepair() {
  section.hidden = true;
}

// Why

async function explain(key) {
  const said = $("#why", section);
  try {
    const { state, why } = await api(`v1/explain?${new URLSearchParams({ key })}`, { signal });
    said.replaceChildren(make("b", "", state.replaceAll("_", " ")), ` ${why}`);
  } catch (error) {
    fails(error);
  }
}

// Rejected

async function rejected({ further = false } = {}) {
  const asked = new URLSearchParams({ limit: SHOWN, ...(reason ? { reason } : {}), ...(further ? { before } : {}) });
  const told = await api(`v1/rejected?${asked}`, { signal });
  const list = $("#rejected", section), met = new Set([...list.children].map(({ dataset }) => dataset.key));
  const fresh = told.found.filter(({ key }) => !further || !met.has(key));
  if (!further) list.replaceChildren();
  list.append(...fresh.map(letter));
  before = told.found.at(-1)?.at;
  $("#more-rejected", section).hidden = told.found.length < SHOWN || !fresh.length;
  $(".number", section).textContent = told.rejected.toLocaleString("en");
  $("#retry", section).hidden = !told.found.length;
  $("#reasons", section).replaceChildren(...Object.entries(told.reasons).map(reasonButton));
}

function reasonButton([name, count]) {
  const button = make("button", "", make("span", "", name.replaceAll("_", " ")), make("span", "number", String(count)));
  button.type = "button";
  button.title = REASONS[name] || "";
  button.setAttribute("aria-pressed", name === reason);
  button.addEventListener("click", () => {
    reason = name === reason ? "" : name;
    rejected().catch(fails);
  });
  return make("li", "", button);
}

function letter({ key, reason: why, detail, at, count, audio_url: url }) {
  const told = make("p", "quiet", `${REASONS[why] || why} ${detail.charAt(0).toUpperCase()}${detail.slice(1)}`);
  const when = `${new Date(at * 1000).toLocaleString("en")}${count > 1 ? `, ${count} times` : ""}`;
  const again = make("button", "plain", "Try again");
  again.type = "button";
  again.setAttribute("aria-label", `Try ${key} again`);
  again.addEventListener("click", () => retry([key]));
  const item = make("li", "", make("b", "", key), make("span", "quiet", when), told, make("p", "does", again, ...open(url, key)));
  item.dataset.key = key;
  return item;
}

function open(url, key) {
  if (!url) return [];
  const link = make("a", "", "Open");
  Object.assign(link, { href: url, target: "_blank", rel: "noopener" });
  link.setAttribute("aria-label", `Open ${key}`);
  return [link];
}

async function retry(keys) {
  let tried = 0;
  try {
    for (let at = 0; at < keys.length; at += AT_ONCE) {
      const body = JSON.stringify({ keys: keys.slice(at, at + AT_ONCE) });
      tried += (await api("v1/rejected/retry", { method: "POST", body, headers: JSON_TYPE, signal })).queued;
    }
    $(".said", section).textContent = `${tried} tried again: what is well by then goes from this list`;
  } catch (error) {
    fails(error);
  }
}

// Twice

async function same(after) {
  const { groups, next } = await api(`v1/duplicates?${new URLSearchParams({ limit: GROUPS, after })}`, { signal });
  const list = $("#same", section);
  if (!after) list.replaceChildren();
  list.append(...groups.map(group));
  const more = $("#more-same", section);
  more.hidden = !next;
  more.onclick = () => same(next).catch(fails);
  $("#none-same", section).hidden = list.children.length > 0;
}

async function alike() {
  const list = $("#alike", section), said = $("#looked", section), enough = list.children.length + GROUPS;
  try {
    do {
      const asked = new URLSearchParams({ alike: ALIKE, after: alikeAfter });
      const { groups, next } = await api(`v1/duplicates?${asked}`, { signal });
      list.append(...groups.map(group));
      alikeAfter = next;
      said.textContent = `${list.children.length} groups; looking …`;
    } while (alikeAfter && list.children.length < enough);
    said.textContent = alikeAfter ? `${list.children.length} groups so far` : `${list.children.length} groups, and that is all`;
    $("#look", section).hidden = !alikeAfter;
  } catch (error) {
    if (!signal.aborted) fails(error);
  }
}

function group({ count, items }) {
  const rows = items.map(({ key, audio_url: url, likeness }) => make("li", "", key,
    ...(likeness < 1 ? [make("span", "quiet", ` ${(100 * likeness).toFixed(1)} %`)] : []), " ", ...open(url, key)));
  const button = make("button", "plain", "Select all but the first");
  button.type = "button";
  button.setAttribute("aria-label", `Select all but ${items[0].key}`);
  button.addEventListener("click", () => { restore(items.slice(1)); tell(); });
  const rest = count > items.length ? [make("p", "quiet", `and ${count - items.length} more`)] : [];
  return make("li", "", make("ul", "", ...rows), ...rest, button);
}

// Without words

async function countWordless() {
  const { items } = await api("v1/items?has_text=no&limit=1", { signal });
  const button = $("#wordless", section), told = items.toLocaleString("en");
  button.disabled = !items;
  $("#naming", section).hidden = !items;
  button.textContent = items === 1 ? "1 sound has no words" : `${told} sounds have no words`;
}

$("#explain", section).addEventListener("submit", (event) => {
  event.preventDefault();
  explain(event.target.elements.key.value.trim());
});
$("#retry", section).addEventListener("click", () => {
  retry([...$("#rejected", section).children].map(({ dataset }) => dataset.key));
});
$("#more-rejected", section).addEventListener("click", () => rejected({ further: true }).catch(fails));
$("#look", section).addEventListener("click", alike);
