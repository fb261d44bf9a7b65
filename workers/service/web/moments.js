// Where in a longer recording it is heard: a curve of how near each part is, and its best moments.

import { api } from "./api.js";
import { $, drawnInView, make } from "./dom.js";
import { playFrom, timeOf } from "./sound.js";
import { nameOf } from "./taking/formats.js";
import { save } from "./taking/taking.js";

const LONGEST_S = 120; // of an excerpt that the service cuts
const NEXT_S = 0.5; // this close to a moment's start it is the one that is heard

export function prepareMoments(node, { asked, onLike, onError }) {
  const { moments = [] } = node.hit, part = $(".moments", node);
  part.hidden = !moments.length;
  if (!moments.length) return;
  node.moment = moments[0];
  $("ul", part).append(...moments.map((moment) => make("li", "", chip(node, moment))));
  const like = $(".like", part);
  like.setAttribute("aria-label", `More like this moment of ${$("h2", node).textContent}`);
  like.addEventListener("click", () => onLike(node.moment.start_s));
  const cut = $(".cut", part);
  cut.hidden = !node.hit.audio_url;
  cut.setAttribute("aria-label", `Download this moment of ${$("h2", node).textContent}`);
  cut.addEventListener("click", () => excerpt(node).catch((error) => onError(error.message)));
  choose(node, node.moment);
  if (asked.q) drawn.set(node, asked);
  if (asked.q) seen.observe(node);
  paint(node);
}

function chip(node, moment) {
  const { start_s: start, end_s: end, score } = moment;
  const button = make("button", "", clock(start));
  button.type = "button";
  button.setAttribute("aria-label", `Play from ${clock(start)} to ${clock(end)}, score ${score.toFixed(2)}`);
  button.title = button.getAttribute("aria-label");
  button.addEventListener("click", () => go(node, moment));
  return button;
}

function choose(node, moment) {
  node.moment = moment;
  [...$(".moments ul", node).children].forEach((item, at) => {
    item.firstElementChild.setAttribute("aria-pressed", node.hit.moments[at] === moment);
  });
  paint(node);
}

function go(node, moment) {
  choose(node, moment);
  playFrom(node, moment.start_s);
}

async function excerpt({ hit, moment: { start_s: start, end_s: end } }) {
  const part = new URLSearchParams({ start_s: start, end_s: Math.min(end, start + LONGEST_S) });
  const sound = await api(`v1/items/${hit.id}/excerpt?${part}`, { as: "blob" });
  const name = nameOf(hit).replace(/\.[^.]*$/, "");
  save(`${name} ${clock(start).replaceAll(":", "-")}.wav`, sound);
}

// The next moment in time from what is heard now, or the one before.
export function jump(node, step) {
  const inTime = [...(node.hit.moments || [])].sort((one, other) => one.start_s - other.start_s);
  const now = timeOf(node) ?? node.moment?.start_s;
  const found = step > 0
    ? inTime.find(({ start_s: start }) => start > now + NEXT_S)
    : inTime.findLast(({ start_s: start }) => start < now - NEXT_S);
  if (found) go(node, found);
}

export function clock(seconds) {
  const whole = Math.floor(seconds), two = (number) => String(number).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

// Curves, one after the other, of what comes into view.

const drawn = new WeakMap(); // hit's element → what was asked
const seen = drawnInView(draw);

async function draw(node) {
  const { q, without } = drawn.get(node);
  const asked = new URLSearchParams({ q, ...(without ? { without } : {}) });
  try {
    node.windows = (await api(`v1/items/${node.hit.id}/timeline?${asked}`, { quiet: true })).windows;
    paint(node);
  } catch (error) { // its moments are told all the same
    console.info(`no curve of ${node.hit.key}: ${error.message}`);
  }
}

function paint(node) {
  const canvas = $(".moments canvas", node), style = getComputedStyle(node);
  const width = Math.round(canvas.clientWidth * devicePixelRatio);
  const height = Math.round(canvas.clientHeight * devicePixelRatio);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d"), scale = width / node.hit.payload.duration_s;
  context.clearRect(0, 0, width, height);
  for (const moment of node.hit.moments) {
    context.globalAlpha = moment === node.moment ? 0.45 : 0.22;
    context.fillStyle = style.getPropertyValue("--audio");
    const wide = Math.max(3 * devicePixelRatio, (moment.end_s - moment.start_s) * scale);
    context.fillRect(moment.start_s * scale, 0, wide, height);
  }
  context.globalAlpha = 1;
  context.strokeStyle = style.getPropertyValue("--metadata");
  context.lineWidth = 1.25 * devicePixelRatio;
  context.beginPath();
  for (const [left, share] of points(node.windows || [], scale)) {
    context.lineTo(left, height - devicePixelRatio - share * (height - 2 * devicePixelRatio));
  }
  context.stroke();
}

// For each pixel the best of its windows, from the least of all to the best of all.
function points(windows, scale) {
  const best = new Map();
  for (const { start_s: start, end_s: end, score } of windows) {
    const left = Math.round(((start + end) / 2) * scale);
    best.set(left, Math.max(score, best.get(left) ?? -Infinity));
  }
  const scores = [...best.values()], least = Math.min(...scores), most = Math.max(...scores);
  return [...best].map(([left, score]) => [left, (score - least) / (most - least || 1)]);
}

function repaint() {
  for (const node of document.querySelectorAll(".hit:has(.moments:not([hidden]))")) paint(node);
}
addEventListener("resize", repaint);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
