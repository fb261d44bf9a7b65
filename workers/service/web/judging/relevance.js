// How probably a hit is what is meant, where the service knows that.

import { $ } from "../dom.js";

export const NEAREST = "Nothing here sounds like that; the nearest are:";

export function showRelevance(node, { relevance = null }) {
  const part = $(".relevance", node);
  part.hidden = relevance === null;
  $(".why", node).classList.toggle("likely", !part.hidden);
  if (part.hidden) return;
  part.textContent = `${Math.round(relevance * 100)} %`;
  part.title = "how probably this is what is meant";
}
