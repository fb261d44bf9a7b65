// Saying what fits a question, where the service takes that: by click and by key. What was said last
// of a hit counts, so whoever is mistaken says something else, or takes it back by saying it again.

import { api } from "../api.js";
import { $ } from "../dom.js";

const JSON_TYPE = { "Content-Type": "application/json" };
const WITHDRAWN = "withdrawn";
const KEYS = { y: "fits", n: "misses", s: "sought" };

const said = new Map(); // question and item → what was said of it, until the page is closed
let asking = null; // whether verdicts are taken; asked again if nobody answered

async function areTaken() {
  asking ??= api("v1/feedback", { quiet: true }).then(({ open }) => open);
  try {
    return await asking;
  } catch { // hits are shown all the same
    asking = null;
    return false;
  }
}

// Verdicts are of questions by words alone: of others they would say what nobody meant.
export async function prepareVerdicts(node, { asked: { q, without, alone }, onError }) {
  if (!q || without || !alone || !(await areTaken())) return;
  const part = $(".verdicts", node);
  part.hidden = false;
  $("#verdict-keys").hidden = false;
  part.setAttribute("aria-label", `Does ${$("h2", node).textContent} fit?`);
  part.addEventListener("click", ({ target }) => {
    const { opinion } = target.closest("button")?.dataset || {};
    if (opinion) say(node, q, opinion).catch((error) => onError(error.message));
  });
  show(node, q);
}

async function say(node, q, pressed) {
  const opinion = said.get(about(node, q)) === pressed ? WITHDRAWN : pressed;
  const body = JSON.stringify({ q, verdicts: [{ item: node.hit.id, opinion }] });
  await api("v1/feedback", { method: "POST", body, headers: JSON_TYPE });
  said.set(about(node, q), opinion);
  show(node, q);
  $(".verdicts .said", node).textContent = opinion === WITHDRAWN ? "Taken back." : "Thank you.";
}

function show(node, q) {
  for (const button of node.querySelectorAll(".verdicts button")) {
    button.setAttribute("aria-pressed", button.dataset.opinion === said.get(about(node, q)));
  }
}

const about = (node, q) => `${node.hit.id} ${q}`;

// What each key does with the hit that is current.
export function verdictKeys(current) {
  const press = (opinion) => $(`.verdicts:not([hidden]) [data-opinion=${opinion}]`, current())?.click();
  return Object.fromEntries(Object.entries(KEYS).map(([key, opinion]) => [key, () => press(opinion)]));
}
