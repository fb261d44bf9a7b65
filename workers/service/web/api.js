// Asks the service's public interface. A request that is refused becomes a Problem, which says what
// to do; where a key is needed, it is asked for once, whoever waits for it.

const KEY = "audiofuse-key"; // in the tab's own storage: gone when it is closed

export class Problem extends Error {
  constructor(message, { status = 0 } = {}) {
    super(message);
    this.status = status; // 0: nobody answered
    this.mayPass = [0, 401, 408, 429].includes(status) || status >= 500;
  }
}

let askForKey = async () => "";
let asking = null;

export function keysComeFrom(ask) {
  askForKey = ask;
}

// The answer is JSON, or ``as`` a "blob".
export async function api(path, { quiet = false, as = "json", ...options } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const answer = await send(path, options, key);
    if (answer.status !== 401) return read(answer, as);
    if (quiet) throw new Problem("A key is needed.", { status: 401 });
    if (key === sessionStorage.getItem(KEY)) await newKey(Boolean(key));
  }
}

export const keyHeader = (key = sessionStorage.getItem(KEY)) => (key ? { Authorization: `Bearer ${key}` } : {});

async function send(path, options, key) {
  const headers = { ...options.headers, ...keyHeader(key) };
  try {
    return await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The service does not answer. This page goes on by itself once it does.");
  }
}

async function read(answer, as) {
  if (answer.ok) return receive(answer, as);
  const body = await answer.json().catch(() => ({}));
  const after = answer.headers.get("Retry-After");
  const said = body.detail || body.title || `The service failed (${answer.status}).`;
  const wait = answer.status === 429 && after ? ` Try again in ${after} s.` : "";
  throw new Problem(sentence(said) + wait, { status: answer.status });
}

async function receive(answer, as) {
  try {
    return await answer[as]();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The answer did not arrive whole.");
  }
}

async function newKey(refused) {
  asking ??= askForKey(refused).finally(() => { asking = null; });
  const key = await asking;
  if (!key) throw new Problem("A key is needed to search here.", { status: 401 });
  sessionStorage.setItem(KEY, key);
  dispatchEvent(new Event("key")); // for whoever offers what only some may do
}

export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
