// Hits as others read them: a table, JSON, a playlist, the places where they lie.

const HERE = ["localhost", "127.0.0.1", "[::1]"]; // a page of this very machine
const COLUMNS = {
  key: (hit) => hit.key,
  location: (hit) => hit.location,
  score: (hit) => hit.score,
  sound: (hit) => hit.audio,
  words: (hit) => hit.metadata,
  title: ({ payload }) => payload.title,
  description: ({ payload }) => payload.description,
  keywords: ({ payload }) => payload.keywords?.join("; "),
  labels: ({ payload }) => payload.labels?.join("; "),
  duration_s: ({ payload }) => payload.duration_s,
  size: ({ payload }) => payload.size,
  id: (hit) => hit.id,
};

export function table(hits) {
  const rows = hits.map((hit) => Object.values(COLUMNS).map((value) => cell(value(hit))));
  return [Object.keys(COLUMNS), ...rows].map((row) => `${row.join(",")}\r\n`).join("");
}

// Text that begins like a formula would be run by a spreadsheet.
function cell(value) {
  if (typeof value === "number") return String(value);
  const text = String(value ?? "").replace(/^[=+\-@\t\r]/, "'$&");
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export const json = (hits) => `${JSON.stringify(hits, null, 2)}\n`;

export const places = (hits) => hits.map(({ location, key }) => location || key);

// A folder's paths play for ever, on the machine where the folder is; links to elsewhere expire.
export function playlist(hits) {
  const isHere = HERE.includes(location.hostname);
  const lines = hits.flatMap((hit) => {
    const isPath = isHere && hit.location && !hit.location.startsWith("s3://");
    const title = (hit.payload.title || hit.key).replace(/\s+/g, " ");
    const seconds = Math.round(hit.payload.duration_s ?? -1);
    return [`#EXTINF:${seconds},${title}`, isPath ? hit.location : linkOf(hit)];
  });
  return ["#EXTM3U", ...lines, ""].join("\n");
}

export const linkOf = (hit) => new URL(hit.audio_url, location.href).href;

export const nameOf = (hit) => hit.key.split("/").pop();
