// Three words for what several files do.

export const $ = (selector, root = document) => root.querySelector(selector);

export function make(tag, className, ...children) {
  const node = document.createElement(tag);
  node.className = className;
  node.append(...children);
  return node;
}

// What comes into view is drawn, one after the other, so that a long list does not flood the network.
export function drawnInView(draw) {
  let drawing = Promise.resolve();
  const seen = new IntersectionObserver((entries) => {
    for (const { target } of entries.filter((each) => each.isIntersecting)) {
      seen.unobserve(target);
      drawing = drawing.then(() => target.isConnected && draw(target)); // else others are shown by now
    }
  }, { rootMargin: "200px" });
  return seen;
}
