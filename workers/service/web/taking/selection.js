// Which sounds are selected, whatever is asked meanwhile: by click, by shift and click, or all.

import { $ } from "../dom.js";

const chosen = new Map(); // id → hit, in the order in which they were selected
const list = $("#results"), all = $("#all");
let last = null; // the hit's element that was selected last: from there shift selects
let changed = () => {};

export const selected = () => [...chosen.values()];
export const isSelected = (id) => chosen.has(id);
export const onSelection = (act) => { changed = act; };

export function prepareSelection(node) {
  const box = $(".select input", node);
  box.setAttribute("aria-label", `Select ${$("h2", node).textContent}`);
  box.addEventListener("click", ({ shiftKey }) => select(node, box.checked, { range: shiftKey }));
  show(node);
}

export function select(node, on = !chosen.has(node.hit.id), { range = false } = {}) {
  const nodes = list.contains(node) ? [...list.children] : [node];
  const from = nodes.indexOf(range && nodes.includes(last) ? last : node), to = nodes.indexOf(node);
  take(nodes.slice(Math.min(from, to), Math.max(from, to) + 1), on);
  last = node;
}

export function selectAll() {
  take([...list.children], !allAre());
}

export function clearSelection() {
  chosen.clear();
  tell();
}

export function restore(hits) {
  for (const hit of hits) chosen.set(hit.id, hit);
}

function take(nodes, on) {
  for (const { hit } of nodes) {
    if (on) chosen.set(hit.id, hit);
    else chosen.delete(hit.id);
  }
  tell();
}

// To be called whenever the list has changed.
export function tell() {
  for (const node of document.querySelectorAll(".hit")) show(node);
  all.textContent = list.children.length && allAre() ? "Select none" : "Select all";
  changed(selected());
}

const allAre = () => [...list.children].every(({ hit }) => chosen.has(hit.id));

function show(node) {
  $(".select input", node).checked = chosen.has(node.hit.id);
  node.classList.toggle("selected", chosen.has(node.hit.id));
}

all.addEventListener("click", selectAll);
