// The map of what there is: hovering plays, a line around sounds selects them, a question lights up.

import { api } from "../api.js";
import { $, make } from "../dom.js";
import { toggle } from "../sound.js";
import { isSelected, restore, tell } from "../taking/selection.js";
import { Plane } from "./plane.js";

const ROUGH_MS = 3000, DRAWING_MS = 700; // until it is asked whether there is a better map
const HOVER_MS = 180; // that a pointer stays on a place until it is heard
const COLOURS = [174, 18, 262, 45, 210, 330, 100, 0]; // hues of the commonest groups
const MOST = 1000; // sounds that are selected by one line
const JSON_TYPE = { "Content-Type": "application/json" };
const GROUPS = { label: ({ tags }) => tags[0], folder: ({ key }) => key.split("/").slice(0, -1)[0] };
const ARROWS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

const section = $("#map"), canvas = $("canvas", section), here = $("#here"), said = $(".said", section);
const dark = matchMedia("(prefers-color-scheme: dark)");
const plane = new Plane(canvas);
let known = 0; // the number of the map that is shown
let drawn = [], within = ""; // all its places, and the folder of which alone they are shown
let lit = new Set(); // ids of what answers the question
let current = null, line = [], hovering = 0, cardOf = null, fails = () => {};

// Shows the map of a folder; ``find`` returns what to light up, ``card`` makes a hit of an item.
export async function showMap({ folder, find, card, onError, signal }) {
  [cardOf, fails, within] = [card, onError, folder];
  section.hidden = false;
  lit = new Set();
  arrange();
  await Promise.all([keepUp(signal), light(find, signal)]).catch((error) => {
    if (!signal.aborted) onError(error);
  });
}

export function hideMap() {
  section.hidden = true;
  here.replaceChildren();
  current = null;
}

async function keepUp(signal) {
  for (;;) {
    const { state, number, items, places } = await api(`v1/map?known=${known}`, { signal });
    if (places) take(places, number);
    const [told, all, shown] = [drawn.length, items, plane.places.length].map((each) => each.toLocaleString("en"));
    const inFolder = within ? `, of these ${shown} in ${within}` : "";
    if (state === "drawing") said.textContent = "The map is being drawn …";
    else said.textContent = `${told} of ${all} sounds${inFolder}${state === "rough" ? "; the map becomes finer …" : ""}`;
    if (state === "final") return;
    await new Promise((resolve) => { setTimeout(resolve, state === "rough" ? ROUGH_MS : DRAWING_MS); });
    if (signal.aborted) return;
  }
}

function take(places, number) {
  [drawn, known] = [places, number];
  arrange();
}

function arrange() {
  plane.places = drawn.filter(({ key }) => key.startsWith(within));
  current = plane.places.find(({ id }) => id === current?.id) || null;
  colour();
}

async function light(find, signal) {
  const hits = await find();
  if (signal.aborted) return;
  lit = new Set(hits.map(({ id }) => id));
  paint();
}

// Colours

function colour() {
  const group = GROUPS[$("#colours", section).value], counts = new Map();
  for (const place of plane.places) {
    place.group = group(place) || "";
    if (place.group) counts.set(place.group, (counts.get(place.group) || 0) + 1);
  }
  const common = [...counts].sort((one, other) => other[1] - one[1]).slice(0, COLOURS.length);
  const hues = new Map(common.map(([name], at) => [name, COLOURS[at]]));
  for (const place of plane.places) place.hue = hues.get(place.group);
  $(".groups", section).replaceChildren(...common.map(([name]) => {
    const dot = make("i", "");
    dot.style.background = ofHue(hues.get(name)); // by script, which the policy allows
    return make("li", "", dot, name);
  }));
  paint();
}

const ofHue = (hue) => (hue === undefined ? "#8a969a" : `hsl(${hue} 62% ${dark.matches ? 66 : 40}%)`);

function paint() {
  if (section.hidden) return;
  const style = getComputedStyle(section), ink = style.getPropertyValue("--ink");
  const base = plane.places.length > 1500 ? 2.4 : 4;
  plane.draw((place) => {
    const isLit = lit.has(place.id), rings = place === current || isSelected(place.id);
    return {
      colour: ofHue(place.hue),
      opacity: lit.size && !isLit ? 0.18 : 0.85,
      radius: base * (isLit ? 1.9 : 1) * Math.sqrt(Math.min(plane.zoom, 4)),
      ring: rings ? (place === current ? style.getPropertyValue("--focus") : ink) : "",
    };
  }, line, ink);
}

// One sound

async function choose(place, { play }) {
  current = place;
  paint();
  if (!place) return;
  canvas.setAttribute("aria-description", place.title || place.key); // told to who cannot see it
  try {
    const [item] = await itemsOf([place]);
    if (place !== current || !item) return;
    const node = cardOf(item);
    node.setAttribute("aria-current", "true");
    here.replaceChildren(node);
    if (play) toggle(node);
  } catch (error) {
    fails(error);
  }
}

async function itemsOf(places) {
  const body = JSON.stringify({ ids: places.map(({ id }) => id) });
  return (await api("v1/items", { method: "POST", body, headers: JSON_TYPE })).items;
}

function hover(place) {
  clearTimeout(hovering);
  canvas.classList.toggle("on", Boolean(place));
  canvas.title = place ? place.title || place.key : "";
  if (!place || place === current) return;
  hovering = setTimeout(() => choose(place, { play: $("#hover").checked }), HOVER_MS);
}

// Many sounds

async function selectWithin() {
  const places = plane.within(line);
  line = [];
  paint();
  if (!places.length) return;
  try {
    restore(await itemsOf(places.slice(0, MOST)));
    tell();
    if (places.length > MOST) said.textContent = `${MOST} of ${places.length} are selected: more cannot be taken at once`;
  } catch (error) {
    fails(error);
  }
}

// Pointer, wheel and keys

const at = ({ offsetX, offsetY }) => [offsetX, offsetY];

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  line = [at(event)];
});
canvas.addEventListener("pointermove", (event) => {
  if (!line.length) return hover(plane.nearest(at(event)));
  line.push(at(event));
  paint();
});
canvas.addEventListener("pointerup", (event) => {
  clearTimeout(hovering);
  if (line.length > 4) return selectWithin();
  line = [];
  const place = plane.nearest(at(event));
  if (place) choose(place, { play: true });
});
canvas.addEventListener("pointercancel", () => { line = []; paint(); });
canvas.addEventListener("pointerleave", () => clearTimeout(hovering));
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(at(event), Math.exp(-event.deltaY / 400));
}, { passive: false });

function zoom(point, factor) {
  plane.zoomAt(point, factor);
  paint();
}

canvas.addEventListener("keydown", (event) => {
  const middle = current ? plane.onScreen(current) : [canvas.clientWidth / 2, canvas.clientHeight / 2];
  if (ARROWS[event.key]) choose(plane.next(current || plane, ARROWS[event.key]) || current, { play: $("#hover").checked });
  else if (event.key === "+") zoom(middle, 1.5);
  else if (event.key === "-") zoom(middle, 1 / 1.5);
  else return;
  event.preventDefault();
  event.stopPropagation();
});

$("#colours", section).addEventListener("change", colour);
$("#closer").addEventListener("click", () => zoom([canvas.clientWidth / 2, canvas.clientHeight / 2], 1.6));
$("#whole").addEventListener("click", () => { plane.reset(); paint(); });
addEventListener("resize", paint);
dark.addEventListener("change", colour);
export { paint as paintMap };
