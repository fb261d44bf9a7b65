// Sounds without words get suggestions of labels by ear. What is chosen of them is taken along as
// sidecars: the page itself writes nothing.

import { api } from "../api.js";
import { $, make } from "../dom.js";
import { save } from "../taking/taking.js";

const SHOWN = 20; // sounds, at first and with each "More"
const AT_ONCE = 100; // sidecars of one file
const JSON_TYPE = { "Content-Type": "application/json" };

const section = $("#naming"), list = $("#named", section), said = $(".said", section);
const more = $("#more-named", section), takeAlong = $("#sidecars", section);
let fails = () => {}, signal = null, after = "";

export function beginNaming({ onError, signal: until }) {
  [fails, signal, after] = [onError, until, ""];
  list.replaceChildren();
  said.textContent = "";
  $("#suggest", section).hidden = false;
  for (const button of [more, takeAlong]) button.hidden = true;
}

async function suggest() {
  said.textContent = "Listening …";
  try {
    const asked = new URLSearchParams({ has_text: "no", limit: SHOWN, after });
    const { found, next } = await api(`v1/items?${asked}`, { signal });
    const named = found.length ? await labelsOf(found) : new Map();
    list.append(...found.map((item) => row(item, named.get(item.id) || [])));
    $("#suggest", section).hidden = true;
    after = next;
    more.hidden = !next;
    tell();
  } catch (error) {
    if (signal.aborted) return;
    said.textContent = "";
    fails(error);
  }
}

async function labelsOf(found) {
  const body = JSON.stringify({ ids: found.map(({ id }) => id) });
  const { items } = await api("v1/labels", { method: "POST", body, headers: JSON_TYPE, signal });
  return new Map(items.map(({ id, labels }) => [id, labels]));
}

function row({ id, key, audio_url: url }, labels) {
  const chips = labels.map(({ label, score }) => chip(label, score));
  const told = chips.length ? make("span", "chips", ...chips) : make("span", "quiet", "Nothing is near to it.");
  const item = make("li", "", make("b", "", key), ...listen(url, key), told);
  item.dataset.id = id;
  return item;
}

function listen(url, key) {
  if (!url) return [];
  const sound = make("audio", "");
  Object.assign(sound, { controls: true, preload: "none", src: url });
  sound.setAttribute("aria-label", `Play ${key}`);
  return [sound];
}

function chip(label, score) {
  const button = make("button", "", label);
  button.type = "button";
  button.title = `Nearness ${score.toFixed(2)}`;
  button.setAttribute("aria-pressed", true);
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    tell();
  });
  return button;
}

// What is chosen: ids with the labels that are switched on.
function chosen() {
  const rows = [...list.children].map((item) => ({
    id: item.dataset.id,
    labels: [...item.querySelectorAll("[aria-pressed=true]")].map((button) => button.textContent),
  }));
  return rows.filter(({ labels }) => labels.length);
}

function tell() {
  const { length } = chosen();
  takeAlong.hidden = !length;
  takeAlong.textContent = length === 1 ? "Download 1 sidecar" : `Download ${length} sidecars`;
  said.textContent = length ? "Put the files beside the sounds: by these labels they are found then, too." : "";
}

async function download() {
  try {
    for (let items = chosen(); items.length; items = items.slice(AT_ONCE)) {
      const body = JSON.stringify({ items: items.slice(0, AT_ONCE) });
      save("sidecars.zip", await api("v1/sidecars", { method: "POST", body, headers: JSON_TYPE, as: "blob" }));
    }
  } catch (error) {
    fails(error);
  }
}

$("#suggest", section).addEventListener("click", suggest);
more.addEventListener("click", suggest);
takeAlong.addEventListener("click", download);
