// What a hit sounds like: one player for the page, and a waveform for each hit that comes into view.

import { api } from "./api.js";
import { $, drawnInView } from "./dom.js";

const DRAWN_BYTES = 8e6; // larger files are played, but not drawn
const BARS = 120;
const RATE = 8000; // enough for a picture, and a quarter of the memory

const player = new Audio();
let playing = null; // the hit's element
let from = null; // the second at which what is loaded begins
player.addEventListener("loadedmetadata", () => {
  if (from) player.currentTime = from;
  from = null;
});

export function prepareSound(node, onError) {
  const { audio_url: url, payload } = node.hit;
  const button = $(".play", node), position = $(".wave input", node);
  const title = $("h2", node).textContent;
  position.setAttribute("aria-label", `Position in ${title}`);
  button.disabled = !url;
  $(".wave", node).hidden = !url;
  button.addEventListener("click", () => toggle(node));
  position.addEventListener("input", () => seek(node, position.value / position.max));
  node.onSoundError = onError;
  show(node);
  if (url && payload.size <= DRAWN_BYTES && !navigator.connection?.saveData) seen.observe(node);
}

export function toggle(node) {
  if (!node.hit.audio_url) return;
  if (playing === node && !player.paused) player.pause();
  else play(node);
}

export const stop = () => player.pause();

// Plays a hit from a second on.
export function playFrom(node, seconds) {
  if (!node.hit.audio_url) return;
  if (playing === node && player.readyState) player.currentTime = seconds;
  else from = seconds;
  play(node);
}

// Returns at which second of a hit the player is; nothing if it has another.
export const timeOf = (node) => (node === playing ? from ?? player.currentTime : undefined);

async function play(node) {
  if (playing !== node) {
    const before = playing;
    playing = node;
    from ??= node.moment?.start_s ?? 0;
    if (before) show(before);
    player.src = node.hit.audio_url;
  }
  try {
    await start();
  } catch { // its link may have expired
    try {
      const item = await api(`v1/items/${node.hit.id}`);
      if (playing !== node) return;
      player.src = node.hit.audio_url = item.audio_url;
      await start();
    } catch {
      const why = "it was deleted, or this browser does not know its format";
      node.onSoundError(`${node.hit.key} cannot be played: ${why}.`);
    }
  }
}

async function start() {
  try {
    await player.play();
  } catch (error) {
    if (error.name !== "AbortError") throw error; // that is a pause, or another sound
  }
}

function seek(node, share) {
  const go = () => { player.currentTime = share * player.duration; };
  const fresh = playing !== node;
  if (fresh) from = 0;
  if (fresh) play(node);
  if (!fresh && player.duration) go();
  else player.addEventListener("loadedmetadata", go, { once: true });
}

for (const change of ["play", "pause", "ended", "seeked"]) {
  player.addEventListener(change, () => playing && show(playing));
}
player.addEventListener("play", function follow() { // smoother than timeupdate, which comes 4 times a second
  if (!playing || player.paused) return;
  show(playing);
  requestAnimationFrame(follow);
});

function show(node) {
  const here = node === playing;
  const sounds = here && !player.paused;
  const share = here && player.duration ? player.currentTime / player.duration : 0;
  const title = $("h2", node).textContent, position = $(".wave input", node);
  node.classList.toggle("playing", sounds);
  $(".play", node).setAttribute("aria-label", `${sounds ? "Pause" : "Play"} ${title}`);
  position.value = share * position.max;
  position.setAttribute("aria-valuetext", `${Math.round(share * 100)} %`);
  paint(node, share);
}

const seen = drawnInView(draw);

async function draw(node) {
  try {
    const bytes = await (await fetch(node.hit.audio_url)).arrayBuffer();
    const decoder = new OfflineAudioContext(1, 1, RATE);
    node.peaks = peaksOf(await decoder.decodeAudioData(bytes));
    show(node);
  } catch (error) { // a format that this browser cannot decode, or a bucket that lets nobody read
    console.info(`no waveform of ${node.hit.key}: ${error.message}`);
  }
}

function peaksOf(sound) {
  const samples = sound.getChannelData(0), step = Math.max(1, samples.length / BARS);
  const peaks = Array.from({ length: BARS }, (_, bar) => {
    let peak = 0;
    for (let at = Math.floor(bar * step); at < Math.min(samples.length, (bar + 1) * step); at += 1) {
      peak = Math.max(peak, Math.abs(samples[at]));
    }
    return peak;
  });
  const loudest = Math.max(...peaks, 1e-6);
  return peaks.map((peak) => peak / loudest);
}

function paint(node, share) {
  const canvas = $("canvas", node), style = getComputedStyle(node);
  const width = Math.round(canvas.clientWidth * devicePixelRatio);
  const height = Math.round(canvas.clientHeight * devicePixelRatio);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  const [played, rest] = ["--audio", "--wave"].map((name) => style.getPropertyValue(name));
  const peaks = node.peaks || Array(BARS).fill(0); // a line that can be clicked, until it is drawn
  peaks.forEach((peak, bar) => {
    const tall = Math.max(2 * devicePixelRatio, peak * height);
    context.fillStyle = bar / BARS < share ? played : rest;
    context.fillRect((bar / BARS) * width, (height - tall) / 2, Math.max(1, (width / BARS) * 0.62), tall);
  });
}

function repaint() {
  for (const node of document.querySelectorAll(".hit")) show(node);
}
addEventListener("resize", repaint);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
