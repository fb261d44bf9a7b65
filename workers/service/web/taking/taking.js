// Taking along what is selected: the sounds themselves, where they lie, or what is known of them.

import { api } from "../api.js";
import { $ } from "../dom.js";
import { json, linkOf, nameOf, places, playlist, table } from "./formats.js";
import { clearSelection, onSelection, selected, tell } from "./selection.js";

const UNITS = ["bytes", "kB", "MB", "GB", "TB"];
const JSON_TYPE = { "Content-Type": "application/json" };

const bar = $("#taken"), said = $(".said", bar);

const WAYS = {
  zip: async (hits) => {
    say(`Packing ${told(hits)} …`);
    const body = JSON.stringify({ ids: hits.map(({ id }) => id) });
    save("sounds.zip", await api("v1/zip", { method: "POST", body, headers: JSON_TYPE, as: "blob" }));
    return `${told(hits)} in sounds.zip`;
  },
  paths: async (hits) => {
    const text = places(hits).join("\n");
    if (!navigator.clipboard) { // a page that came without TLS
      save("paths.txt", text, "text/plain");
      return "Saved as paths.txt: without TLS a page cannot copy";
    }
    await navigator.clipboard.writeText(text);
    return hits.length === 1 ? "The path is copied" : `${hits.length} paths are copied`;
  },
  playlist: (hits) => save("sounds.m3u8", playlist(hits), "application/vnd.apple.mpegurl"),
  csv: (hits) => save("sounds.csv", table(hits), "text/csv"),
  json: (hits) => save("sounds.json", json(hits), "application/json"),
};

async function take(way) {
  try {
    say(await WAYS[way](selected()) || "");
  } catch (error) {
    say(error.message, { isError: true });
  }
}

export function save(name, content, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the browser reads it after the click
  return `Saved as ${name}`;
}

// Chromium writes what is dragged out of the page to a file where it is dropped.
export function dragsOut(link, hit) {
  link.addEventListener("dragstart", ({ dataTransfer }) => {
    const name = nameOf(hit).replaceAll(":", "_"); // which ends the name
    dataTransfer.setData("DownloadURL", `application/octet-stream:${name}:${linkOf(hit)}`);
    dataTransfer.effectAllowed = "copy";
  });
}

function say(text, { isError = false } = {}) {
  said.textContent = text;
  said.classList.toggle("error", isError);
}

const told = (hits) => `${hits.length} ${hits.length === 1 ? "sound" : "sounds"}`;

function size(bytes) {
  const step = bytes ? Math.min(UNITS.length - 1, Math.floor(Math.log10(bytes) / 3)) : 0;
  return `${(bytes / 1000 ** step).toFixed(step > 1 ? 1 : 0)} ${UNITS[step]}`;
}

export function keepSelection(onChange) {
  onSelection((hits) => {
    bar.hidden = !hits.length;
    const bytes = hits.reduce((sum, { payload }) => sum + (payload.size || 0), 0);
    $(".told", bar).textContent = `${told(hits)} selected · ${size(bytes)}`;
    for (const way of ["zip", "playlist"]) { // what needs to hear them
      $(`[data-take=${way}]`, bar).hidden = !hits.some(({ audio_url: url }) => url);
    }
    say("");
    onChange(hits);
  });
  tell();
}

export function toTheBar() {
  if (!bar.hidden) $("button:not([hidden])", bar).focus();
}

bar.addEventListener("click", ({ target }) => {
  const { take: way } = target.closest("button")?.dataset || {};
  if (way === "none") clearSelection();
  else if (way) take(way);
});
