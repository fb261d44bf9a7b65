// Adding sounds, where the service takes that: files are dropped or chosen, each tells how far it
// is, why it was not taken, and when it is found.

import { api } from "../api.js";
import { $, make } from "../dom.js";
import { put } from "./put.js";

const LOOK_MS = 1000; // between two looks whether what was put is found
const LOOKS = 300; // after so many it is left to Repair
const SIDECAR = ".json";

const section = $("#adding"), list = $("#added", section), link = $("nav [data-view=add]");
const field = $("[name=folder]", section), zone = $(".zone", section);
let mostBytes = 0; // of one file; 0: nothing is taken
let putting = Promise.resolve(); // one file after the other

export function showAdding() {
  section.hidden = false;
  look();
}

export function hideAdding() {
  section.hidden = true;
}

// The view is offered to those who may add; who gives a key later may from then on.
async function look() {
  try {
    const { open, most_bytes: most } = await api("v1/uploads", { quiet: true });
    mostBytes = open ? most : 0;
  } catch { // searching tells what is wrong
    mostBytes = 0;
  }
  link.hidden = !mostBytes;
  zone.hidden = !mostBytes;
  $(".off", section).hidden = Boolean(mostBytes);
}

// Sidecars go first: when a sound is heard, its words are there already.
function add(files) {
  const folder = field.value.trim().replace(/^\/+|\/+$/g, "");
  const sorted = [...files].sort((a, b) => b.name.endsWith(SIDECAR) - a.name.endsWith(SIDECAR));
  for (const file of sorted) {
    const key = folder ? `${folder}/${file.name}` : file.name;
    const row = line(key);
    list.prepend(row);
    putting = putting.then(() => take(file, key, row));
  }
}

async function take(file, key, row, options = {}) {
  if (file.size > mostBytes) return say(row, `It is larger than ${mostBytes} bytes.`, "bad");
  try {
    await put(key, file, { ...options, onProgress: (share) => progress(row, share) });
  } catch (error) {
    const isThere = error.status === 409;
    say(row, isThere ? "There is something of this name already." : error.message, "bad");
    if (isThere) offer(file, key, row);
    return undefined;
  }
  if (key.endsWith(SIDECAR)) return say(row, "Its words are there.", "good");
  say(row, "It is there, and will be listened to …");
  watch(key, row); // the next file does not wait for it
  return undefined;
}

function offer(file, key, row) {
  const button = make("button", "plain", "Replace it");
  button.type = "button";
  button.setAttribute("aria-label", `Replace ${key}`);
  button.addEventListener("click", () => { putting = putting.then(() => take(file, key, row, { replace: true })); });
  $(".told", row).append(" ", button);
}

async function watch(key, row) {
  for (let looked = 0; looked < LOOKS; looked += 1) {
    await new Promise((resolve) => { setTimeout(resolve, LOOK_MS); });
    const { state, why } = await stateOf(key);
    if (state === "indexed") return say(row, "It is found.", "good");
    if (state === "rejected") return say(row, why, "bad");
  }
  return say(row, "It is there and not found yet: see Repair.");
}

// Who may not ask why a sound is found sees that it is.
async function stateOf(key) {
  try {
    return await api(`v1/explain?${new URLSearchParams({ key })}`, { quiet: true });
  } catch (error) {
    if (error.status !== 403) return {};
  }
  const { found } = await api(`v1/items?${new URLSearchParams({ prefix: key, limit: 1 })}`, { quiet: true })
    .catch(() => ({ found: [] }));
  return found[0]?.key === key ? { state: "indexed" } : {};
}

function line(key) {
  const bar = make("progress", "");
  Object.assign(bar, { max: 1, value: 0 });
  bar.setAttribute("aria-label", `${key}, how far it is`);
  return make("li", "", make("b", "", key), bar, make("p", "told", "It waits for those before it."));
}

function progress(row, share) {
  $("progress", row).value = share;
  $(".told", row).textContent = `${Math.floor(100 * share)} %`;
}

function say(row, text, kind = "") {
  $(".told", row).textContent = text;
  row.className = kind;
}

// While this view is shown, what is dropped is added and not searched by.

const bringsFiles = (event) => !section.hidden && mostBytes && event.dataTransfer?.types.includes("Files");
for (const name of ["dragenter", "dragleave", "dragover", "drop"]) {
  addEventListener(name, (event) => {
    if (!bringsFiles(event)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    zone.classList.toggle("over", name === "dragover");
    if (name === "drop") add(event.dataTransfer.files);
  });
}
$("[type=file]", section).addEventListener("change", ({ target }) => {
  add(target.files);
  target.value = "";
});
addEventListener("key", look); // of the service, given just now
look();
