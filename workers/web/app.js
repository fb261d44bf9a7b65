// The search page. It asks only the service's public interface, so it is an example as well.

const PAGE = 20;
const WAVE_BYTES = 20e6; // larger files are played, but not drawn
const COUNT_EVERY_MS = 5000;
const FILTERS = ["keyword", "label", "without", "min_duration", "max_duration", "since", "prefix", "has_text"];

const $ = (selector, root = document) => root.querySelector(selector);
const form = $("#search"), list = $("#results"), message = $("#message"), more = $("#more");
const player = new Audio();
let question = null; // what the results answer: {q} or {like} or {file}
let playing = null; // the hit that sounds

async function api(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { ...(options.headers || {}), ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The service does not answer. Is it running?");
  }
  if (answer.status === 401) {
    await askForKey();
    return api(path, options);
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.detail || body.title || `The service failed (${answer.status}).`);
  return body;
}

function askForKey() {
  const dialog = $("#key");
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      sessionStorage.setItem("key", $("[name=key]", dialog).value);
      resolve();
    }, { once: true });
  });
}

function filters() {
  const values = new FormData(form);
  const chosen = FILTERS.map((name) => [name, values.get(name)]).filter(([, value]) => value);
  const balance = Number(values.get("balance"));
  return new URLSearchParams([...chosen, ...(balance === 0.5 ? [] : [["balance", balance]])]);
}

function ask(offset) {
  const options = filters();
  options.set("limit", PAGE);
  options.set("offset", offset);
  if (question.file) {
    return api(`v1/search/sound?${options}`, { method: "POST", body: question.file });
  }
  if (question.like) return api(`v1/similar/${encodeURIComponent(question.like)}?${options}`);
  options.set("q", question.q);
  return api(`v1/search?${options}`);
}

async function run(asked, { push = true } = {}) {
  question = asked;
  more.hidden = true;
  if (push && !asked.file) history.pushState(asked, "", `?${new URLSearchParams({ ...asked, ...Object.fromEntries(filters()) })}`);
  $("#asked").hidden = !asked.file && !asked.like;
  $("#asked").textContent = asked.file ? `Sounds like ${asked.file.name}` : `More like ${asked.title || asked.like}`;
  say("Listening …");
  await show(0);
}

async function show(offset) {
  const asked = question;
  try {
    const { hits, encoder } = await ask(offset);
    if (asked !== question) return; // a newer question was asked meanwhile
    if (!offset) list.replaceChildren();
    list.append(...hits.map(card));
    $("#encoder").textContent = encoder ? ` · ${encoder}` : "";
    more.hidden = hits.length < PAGE;
    say(list.children.length ? "" : "Nothing found. Fewer filters, or other words?");
    if (!offset) choose(list.firstElementChild, { focus: false });
  } catch (error) {
    if (asked === question) say(error.message, true);
  }
}

function say(text, isError = false) {
  message.textContent = text;
  message.classList.toggle("error", isError);
}

function card(hit) {
  const node = $("#hit").content.firstElementChild.cloneNode(true);
  const { payload } = hit;
  node.hit = hit;
  const words = wordsOf(question.q || "");
  mark($("h2", node), payload.title || hit.key.split("/").pop(), words);
  $(".key", node).textContent = `${hit.key} · ${duration(payload.duration_s)}`;
  mark($(".description", node), payload.description || "", words);
  for (const tag of [...(payload.keywords || []), ...(payload.labels || [])].slice(0, 8)) {
    const button = document.createElement("button");
    mark(button, tag, words);
    button.title = `Search for ${tag}`;
    button.onclick = () => { form.q.value = tag; run({ q: tag }); };
    $(".tags", node).append(button);
  }
  explain(node, hit);
  $(".play", node).onclick = () => toggle(node);
  $(".similar", node).onclick = () => run({ like: hit.id, title: payload.title || hit.key });
  const file = $(".file", node);
  if (hit.audio_url) file.href = hit.audio_url;
  else file.hidden = $(".play", node).disabled = true;
  $(".wave", node).onclick = (event) => seek(node, event.offsetX / event.target.clientWidth);
  node.onclick = (event) => { if (!event.target.closest("button, a, canvas")) choose(node); };
  seen.observe(node);
  return node;
}

function explain(node, { score, audio, metadata }) {
  $(".score", node).textContent = score.toFixed(2);
  if (audio == null) return;
  const share = (part) => `${Math.max(0, Math.min(1, part)) * 100}%`;
  $(".bar .audio", node).style.width = share(audio);
  $(".bar .metadata", node).style.width = share(metadata);
  const parts = $(".parts", node);
  for (const [name, value, label] of [["audio", audio, "sound"], ["metadata", metadata, "words"]]) {
    const part = document.createElement("span");
    part.className = name;
    part.textContent = `${label} ${value.toFixed(2)} `;
    parts.append(part);
  }
}

const wordsOf = (text) => new Set(text.toLowerCase().match(/[\p{L}\p{N}]{3,}/gu) || []);

function mark(node, text, words) {
  for (const piece of text.split(/([\p{L}\p{N}]+)/u)) {
    if (!words.has(piece.toLowerCase())) { node.append(piece); continue; }
    const hit = document.createElement("mark");
    hit.textContent = piece;
    node.append(hit);
  }
}

function duration(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")} min`;
}

// Waveforms are drawn once a hit comes into view.
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((each) => each.isIntersecting)) {
    seen.unobserve(entry.target);
    draw(entry.target);
  }
});
let decoding = Promise.resolve();
const decoder = new OfflineAudioContext(1, 1, 8000);

function draw(node) {
  const { audio_url: url, payload } = node.hit;
  if (!url || payload.size > WAVE_BYTES) return;
  decoding = decoding.then(async () => { // one after the other: a long list must not flood the net
    if (!node.isConnected) return;
    try {
      const bytes = await (await fetch(url)).arrayBuffer();
      node.peaks = peaksOf((await decoder.decodeAudioData(bytes)).getChannelData(0), 160);
      paint(node);
    } catch { // a format that this browser cannot decode has no picture, and its player says so
    }
  });
}

function peaksOf(samples, count) {
  const step = Math.max(1, Math.floor(samples.length / count));
  const peaks = Array.from({ length: count }, (_, index) => {
    let peak = 0;
    for (let at = index * step; at < Math.min(samples.length, (index + 1) * step); at += 1) {
      peak = Math.max(peak, Math.abs(samples[at]));
    }
    return peak;
  });
  const loudest = Math.max(...peaks, 1e-6);
  return peaks.map((peak) => peak / loudest);
}

function paint(node) {
  if (!node.peaks) return;
  const canvas = $(".wave", node), style = getComputedStyle(document.documentElement);
  canvas.width = canvas.clientWidth * devicePixelRatio;
  canvas.height = canvas.clientHeight * devicePixelRatio;
  const context = canvas.getContext("2d"), width = canvas.width / node.peaks.length;
  const played = node === playing ? player.currentTime / (player.duration || Infinity) : 0;
  node.peaks.forEach((peak, index) => {
    const height = Math.max(2, peak * canvas.height);
    context.fillStyle = style.getPropertyValue(index / node.peaks.length < played ? "--audio" : "--wave");
    context.fillRect(index * width, (canvas.height - height) / 2, Math.max(1, width * 0.7), height);
  });
}

function toggle(node) {
  if (playing === node && !player.paused) return player.pause();
  if (playing !== node) {
    const before = playing;
    playing = node;
    if (before) { buttons(before); paint(before); }
    player.src = node.hit.audio_url;
  }
  choose(node);
  player.play().catch((error) => { if (error.name !== "AbortError") say("This browser cannot play that format; open the file instead.", true); });
}

function seek(node, share) {
  if (playing !== node) toggle(node);
  const go = () => { player.currentTime = share * player.duration; };
  if (player.duration) go();
  else player.addEventListener("loadedmetadata", go, { once: true });
}

function buttons(node) {
  const sounds = node === playing && !player.paused;
  $(".play", node).textContent = sounds ? "❚❚" : "▶";
  $(".play", node).setAttribute("aria-label", sounds ? "Pause" : "Play");
}
for (const change of ["play", "pause", "ended"]) player.addEventListener(change, () => playing && buttons(playing));
player.addEventListener("timeupdate", () => playing && paint(playing));

const current = () => $(".hit[aria-current=true]");
function choose(node, { focus = true } = {}) {
  current()?.removeAttribute("aria-current");
  if (!node) return;
  node.setAttribute("aria-current", "true");
  if (focus) { node.focus({ preventScroll: true }); node.scrollIntoView({ block: "nearest" }); }
}

const KEYS = {
  "/": () => { form.q.focus(); form.q.select(); },
  ArrowDown: () => choose(current()?.nextElementSibling || current() || list.firstElementChild),
  ArrowUp: () => choose(current()?.previousElementSibling || current()),
  " ": () => current() && toggle(current()),
  m: () => current() && $(".similar", current()).click(),
  Escape: () => player.pause(),
};
KEYS.j = KEYS.ArrowDown;
KEYS.k = KEYS.ArrowUp;
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, dialog");
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (typing && !(event.target === form.q && event.key === "ArrowDown")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === " " && event.target.closest("button, summary")) return;
  const act = KEYS[event.key];
  if (act) { event.preventDefault(); act(); }
});

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (form.q.value.trim()) run({ q: form.q.value.trim() });
  else if (question) run(question, { push: false });
});
form.addEventListener("reset", () => {
  const asked = form.q.value;
  setTimeout(() => { form.q.value = asked; filtersChanged(); });
});
$("#filters").addEventListener("change", () => filtersChanged());
function filtersChanged() {
  const count = [...filters().keys()].length;
  $("#active-filters").textContent = count ? ` (${count})` : "";
  if (question) run(question, { push: false });
}
more.addEventListener("click", () => show(list.children.length));

$("#file").addEventListener("change", (event) => {
  if (event.target.files[0]) run({ file: event.target.files[0] });
  event.target.value = "";
});
let depth = 0; // dragenter and dragleave fire for every element under the pointer
const dropping = (on) => document.body.classList.toggle("dropping", on);
document.addEventListener("dragenter", () => { depth += 1; dropping(true); });
document.addEventListener("dragleave", () => { depth -= 1; if (!depth) dropping(false); });
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  dropping(false);
  if (event.dataTransfer.files[0]) run({ file: event.dataTransfer.files[0] });
});

function fromAddress() {
  const given = new URLSearchParams(location.search);
  for (const name of [...FILTERS, "balance"]) if (given.has(name)) form.elements[name].value = given.get(name);
  form.q.value = given.get("q") || "";
  if (given.get("q")) run({ q: given.get("q") }, { push: false });
  else if (given.get("like")) run({ like: given.get("like"), title: given.get("title") }, { push: false });
  else { question = null; list.replaceChildren(); say(""); more.hidden = true; }
}
addEventListener("popstate", fromAddress);

async function count() {
  try {
    const { items } = await api("v1/items");
    $("#count").textContent = `${items.toLocaleString()} sounds`;
  } catch {
    $("#count").textContent = "not connected";
  }
  setTimeout(count, COUNT_EVERY_MS);
}

fromAddress();
count();
