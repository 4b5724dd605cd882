// Service worker: serves the files of the current bundle from the caches of this device, with or without a network.
"use strict";

const SCOPE = self.registration.scope;
// Another edge page on the same origin has caches with other names. device.js has the same constant.
const NAME = `iris-edge ${new URL(SCOPE).pathname}`;
const MAX_TRIES = 2;

self.addEventListener("install", event => event.waitUntil(verifyScript().then(() => self.skipWaiting())));
self.addEventListener("activate", event => event.waitUntil(self.clients.claim()));
self.addEventListener("message", event => { if (event.data === "claim") event.waitUntil(self.clients.claim()); });

self.addEventListener("fetch", event => {
  const { request } = event, url = new URL(request.url);
  // A request with a query goes to the server.
  const isOurs = request.method === "GET" && url.href.startsWith(SCOPE) && (request.mode === "navigate" || !url.search);
  if (isOurs) event.respondWith(respond(request, url.href.slice(SCOPE.length).split(/[?#]/)[0]));
});

// Verifies this script, because a damaged copy must not replace a good one. If the install fails, the old worker remains active.
async function verifyScript() {
  const fresh = url => fetch(url, { cache: "no-store" });
  const [script, manifest] = await Promise.all([fresh(self.location.href), fresh(`${SCOPE}manifest.json`)]);
  const digest = await crypto.subtle.digest("SHA-256", await script.arrayBuffer());
  const found = [...new Uint8Array(digest)].map(byte => byte.toString(16).padStart(2, "0")).join("");
  if ((await manifest.json()).files["sw.js"].sha256 !== found) throw new Error("sw.js does not match manifest.json");
}

// Responds with a file of the bundle that a path with the prefix @bundle/ names, and otherwise with a file of the current bundle.
async function respond(request, path) {
  const [, named, rest] = /^(?:@([^/]+)\/)?(.*)$/.exec(path);
  const bundle = named || await current(request.mode === "navigate");
  if (!bundle || rest === "manifest.json") return fetch(request);
  return await caches.match(SCOPE + (rest || "index.html"), { cacheName: `${NAME} ${bundle}` }) || fetch(request);
}

// Returns the current bundle. If the page of a new bundle does not start after some tries, the previous bundle replaces it.
async function current(navigates) {
  const cache = await caches.open(NAME), stored = await cache.match(`${SCOPE}state`), state = stored && await stored.json();
  if (!state || state.proven || !state.previous || !navigates) return state && state.current;
  const why = `Bundle ${state.current} did not start on this device.`;
  const next = state.tries < MAX_TRIES ? { ...state, tries: state.tries + 1 }
    : { current: state.previous, previous: state.current, refused: state.current, proven: true, tries: 0, why };
  await cache.put(`${SCOPE}state`, new Response(JSON.stringify(next)));
  return next.current;
}
