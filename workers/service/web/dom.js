// Two words for what every file does.

export const $ = (selector, root = document) => root.querySelector(selector);

export function make(tag, className, ...children) {
  const node = document.createElement(tag);
  node.className = className;
  node.append(...children);
  return node;
}
