// Serves the files of the current bundle from the caches of this device, so that the page works without a network.
"use strict";

const SCOPE = self.registration.scope;
// The caches of another edge page on the same origin have other names. device.js has the same rule.
const NAME = `iris-edge ${new URL(SCOPE).pathname}`;
const MAX_TRIES = 2;

self.addEventListener("install", event => event.waitUntil(verified().then(() => self.skipWaiting())));
self.addEventListener("activate", event => event.waitUntil(self.clients.claim()));
self.addEventListener("message", event => { if (event.data === "claim") event.waitUntil(self.clients.claim()); });

self.addEventListener("fetch", event => {
  const { request } = event, url = new URL(request.url);
  // A URL with a query is for the server.
  const ours = request.method === "GET" && url.href.startsWith(SCOPE) && (request.mode === "navigate" || !url.search);
  if (ours) event.respondWith(answer(request, url.href.slice(SCOPE.length).split(/[?#]/)[0]));
});

// A damaged copy of this file must not replace a good one. A failed install keeps the old worker.
async function verified() {
  const fresh = url => fetch(url, { cache: "no-store" });
  const [script, manifest] = await Promise.all([fresh(self.location.href), fresh(`${SCOPE}manifest.json`)]);
  const digest = await crypto.subtle.digest("SHA-256", await script.arrayBuffer());
  const found = [...new Uint8Array(digest)].map(byte => byte.toString(16).padStart(2, "0")).join("");
  if ((await manifest.json()).files["sw.js"].sha256 !== found) throw new Error("sw.js does not match manifest.json");
}

// A path with @bundle/ belongs to that bundle, and every other path to the current one.
async function answer(request, path) {
  const [, named, rest] = /^(?:@([^/]+)\/)?(.*)$/.exec(path);
  const bundle = named || await current(request.mode === "navigate");
  if (!bundle || rest === "manifest.json") return fetch(request);
  return await caches.match(SCOPE + (rest || "index.html"), { cacheName: `${NAME} ${bundle}` }) || fetch(request);
}

// A bundle whose page has never confirmed its start gets a few tries. Then the previous bundle replaces it.
async function current(navigates) {
  const cache = await caches.open(NAME), kept = await cache.match(`${SCOPE}state`), state = kept && await kept.json();
  if (!state || state.proven || !state.previous || !navigates) return state && state.current;
  const why = `Bundle ${state.current} did not start on this device.`;
  const next = state.tries < MAX_TRIES ? { ...state, tries: state.tries + 1 }
    : { current: state.previous, previous: state.current, refused: state.current, proven: true, tries: 0, why };
  await cache.put(`${SCOPE}state`, new Response(JSON.stringify(next)));
  return next.current;
}
