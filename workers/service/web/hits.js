// A hit as it is shown: what it is, how it sounds, and why it was found.

import { $, make } from "./dom.js";
import { showRelevance } from "./judging/relevance.js";
import { prepareVerdicts } from "./judging/verdicts.js";
import { prepareMoments } from "./moments.js";
import { prepareSound } from "./sound.js";
import { prepareSelection } from "./taking/selection.js";
import { dragsOut } from "./taking/taking.js";

const TAGS = 8;

export function card(hit, { asked, onSimilar, onTag, onError }) {
  const node = $("#hit").content.firstElementChild.cloneNode(true);
  const { payload } = hit, words = wordsOf(asked.q);
  node.hit = hit;
  const title = titleOf(hit);
  mark($("h2", node), title, words);
  $(".key", node).textContent = [hit.key, duration(payload.duration_s)].filter(Boolean).join(" · ");
  mark($(".description", node), payload.description || "", words);
  $(".tags", node).append(...tags(payload, words, onTag));
  explain(node, hit);
  const similar = $(".similar", node), file = $(".file", node);
  similar.setAttribute("aria-label", `More like ${title}`);
  similar.addEventListener("click", () => onSimilar({ id: hit.id, title }));
  file.hidden = !hit.audio_url;
  if (hit.audio_url) {
    file.href = hit.audio_url;
    dragsOut(file, hit);
  }
  prepareSound(node, onError);
  prepareSelection(node);
  showRelevance(node, hit);
  prepareVerdicts(node, { asked, onError });
  prepareMoments(node, { asked, onLike: (at) => onSimilar({ id: hit.id, title, at }), onError });
  return node;
}

export const titleOf = (hit) => hit.payload.title || hit.key.split("/").pop();

function tags(payload, words, onTag) {
  const keywords = payload.keywords || [], lower = keywords.map((each) => each.toLowerCase());
  const labels = (payload.labels || []).filter((each) => !lower.includes(each.toLowerCase()));
  const all = [...keywords.map((each) => ["keyword", each]), ...labels.map((each) => ["label", each])];
  return all.slice(0, TAGS).map(([name, value]) => {
    const button = make("button", "");
    button.type = "button";
    mark(button, value, words);
    button.setAttribute("aria-label", `Only with the ${name} ${value}`);
    button.title = button.getAttribute("aria-label");
    button.addEventListener("click", () => onTag(name, value));
    return button;
  });
}

function explain(node, { score, audio, metadata, copies, payload }) {
  const parts = $(".parts", node);
  $(".why", node).hidden = score === undefined; // nothing was asked
  if (score === undefined) return;
  if (audio === null) { // fusion that is no sum has no parts
    $(".bar .metadata", node).className = "whole";
    $(".bar .whole", node).style.width = share(score);
    parts.append(figure(score));
  } else {
    $(".bar .audio", node).style.width = share(audio);
    $(".bar .metadata", node).style.width = share(metadata);
    parts.append("sound ", make("b", "audio", figure(audio)));
    if (payload.has_text === "no") parts.append(" · no words");
    else if (figure(metadata) !== "0.00") parts.append(" · words ", make("b", "metadata", figure(metadata)));
    parts.title = `${score.toFixed(3)} in all`;
  }
  if (copies?.length) {
    $(".key", node).append(` · ${copies.length} ${copies.length === 1 ? "copy" : "copies"}`);
    $(".key", node).title = copies.join("\n");
  }
}

const figure = (part) => part.toFixed(2).replace("-0.00", "0.00").replace("-", "−");
const share = (part) => `${Math.max(0, Math.min(1, part)) * 100}%`;

const wordsOf = (text) => (text.toLowerCase().match(/[\p{L}\p{N}]{3,}/gu) || []).map(stem);

// So that "barks" is marked for "barking".
function stem(word) {
  return word.length > 4 ? word.replace(/(ing|ed|es|s)$/, "") : word.replace(/s$/, "");
}

function mark(node, text, words) {
  for (const piece of text.split(/([\p{L}\p{N}]+)/u)) {
    node.append(words.includes(stem(piece.toLowerCase())) ? make("mark", "", piece) : piece);
  }
}

function duration(seconds) {
  if (seconds === undefined) return "";
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")} min`;
}
