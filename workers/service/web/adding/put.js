// Puts one file into the bucket; tells how much of it has gone, which fetch does not.

import { keyHeader, Problem, sentence } from "../api.js";

export function put(key, file, { replace = false, onProgress }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", `v1/audio/${key.split("/").map(encodeURIComponent).join("/")}`);
    for (const [name, value] of Object.entries(keyHeader())) request.setRequestHeader(name, value);
    if (replace) request.setRequestHeader("If-Match", "*");
    request.upload.addEventListener("progress", ({ loaded, total }) => onProgress(total ? loaded / total : 1));
    request.addEventListener("error", () => reject(new Problem("It did not arrive.")));
    request.addEventListener("load", () => {
      if (request.status < 300) resolve();
      else reject(new Problem(detail(request), { status: request.status }));
    });
    request.send(file);
  });
}

function detail({ status, responseText }) {
  try {
    return sentence(JSON.parse(responseText).detail);
  } catch {
    return `The service failed (${status}).`;
  }
}
