// Bundles on this device: which bundle is current, how an update replaces it, and the model of a bundle, ready to run.

const BASE = new URL("./", import.meta.url);
// sw.js has the same constant.
export const NAME = `iris-edge ${BASE.pathname}`;
const STATE = new URL("state", BASE).href;
const MANIFEST = "manifest.json";
const MAX_BYTES = 256 * 1024 * 1024;
const MEDIA = {
  css: "text/css; charset=utf-8", html: "text/html; charset=utf-8", js: "text/javascript; charset=utf-8",
  json: "application/json", mjs: "text/javascript; charset=utf-8", wasm: "application/wasm",
};
const LATENCY_RUNS = 50;

const urlOf = path => new URL(path, BASE).href;
const cacheOf = bundle => `${NAME} ${bundle}`;

// Error whose message is a sentence for the user.
export class DeviceError extends Error {}
export class ServerUnreachable extends DeviceError {}

// Returns the current and the previous bundle, whether the page of the current one has started, and the bundle that was rolled
// back, with the reason. The state is one entry of one cache, so that each change is atomic.
export async function state() {
  const stored = await caches.match(STATE, { cacheName: NAME });
  return stored ? stored.json() : { current: null, previous: null, refused: null, proven: true, tries: 0, why: "" };
}

async function write(next) {
  await (await caches.open(NAME)).put(STATE, new Response(JSON.stringify(next)));
}

export async function markStarted() {
  await write({ ...await state(), proven: true, tries: 0 });
}

// Runs a function in one tab at a time.
const withLock = action => navigator.locks.request(NAME, action);

export function rollBack(why) {
  return withLock(async () => {
    const { current, previous } = await state();
    if (previous) await write({ current: previous, previous: current, refused: current, proven: true, tries: 0, why });
    return previous;
  });
}

// Resolves when the service worker controls this page. It may be new, or a forced reload may have bypassed it.
export async function underControl() {
  const workers = navigator.serviceWorker;
  const existing = await workers.getRegistration(BASE.href);
  // Without a network the existing registration is sufficient.
  const registering = workers.register(urlOf("sw.js"), { updateViaCache: "none" });
  const registration = await registering.catch(error => existing || Promise.reject(error));
  const installing = registration.installing || registration.waiting;
  await new Promise((resolve, reject) => {
    if (registration.active) return resolve();
    installing.addEventListener("statechange", () => {
      if (installing.state === "activated") resolve();
      if (installing.state !== "redundant") return;
      reject(new DeviceError("sw.js does not match manifest.json, or its download is incomplete."));
    });
  });
  if (workers.controller) return;
  await new Promise(resolve => {
    workers.addEventListener("controllerchange", resolve, { once: true });
    registration.active.postMessage("claim");
  });
}

// Returns the current manifest of the server.
export async function fetchManifest() {
  let response;
  try {
    response = await fetch(urlOf(MANIFEST), { cache: "no-store" });
  } catch {
    throw new ServerUnreachable("The server cannot be reached.");
  }
  if (!response.ok) throw new DeviceError(`The server returned status ${response.status} for manifest.json.`);
  const manifest = await response.json().catch(() => ({}));
  const problem = await manifestProblem(manifest);
  if (problem) throw new DeviceError(`manifest.json ${problem}.`);
  return manifest;
}

async function manifestProblem(manifest) {
  const files = Object.entries(manifest.files || {});
  const path = /^[\w-][\w.-]*(\/[\w-][\w.-]*)*$/, digest = /^[0-9a-f]{64}$/;
  const match = /^[0-9A-Za-z][0-9A-Za-z._+-]{0,79}-([0-9a-f]{12})$/.exec(manifest.bundle);
  if (!match || !manifest.model || !files.length) return "does not have valid members bundle, model, and files";
  const isSize = bytes => Number.isSafeInteger(bytes) && bytes >= 0;
  const isValid = ([name, entry]) => path.test(name) && digest.test(entry.sha256) && isSize(entry.bytes);
  if (!files.every(isValid)) return "lists a file that is invalid in a bundle";
  if (files.reduce((sum, [, entry]) => sum + entry.bytes, 0) > MAX_BYTES) return `requires more than ${MAX_BYTES} bytes`;
  const text = files.map(([name, entry]) => `${entry.sha256}  ${name}\n`).sort().join("");
  const mark = (await sha256(new TextEncoder().encode(text))).slice(0, 12);
  return mark === match[1] ? "" : "was changed or damaged: the name of its bundle does not match its files";
}

// Downloads the bundle of a manifest and makes it the current one, if every file matches the manifest and the model passes its
// golden rows on this device. Otherwise the current bundle remains. Calls `onProgress` for each file.
// With `again` it also repairs the current bundle, for a device that has lost some of its files.
export function install(manifest, onProgress, again = false) {
  return withLock(async () => {
    const { bundle } = manifest, before = await state(), known = await filesByDigest([before.current, before.previous]);
    if (bundle === before.current && !again) return;
    try {
      const files = [], all = Object.entries(manifest.files);
      for (const [i, [path, entry]] of all.entries()) {
        onProgress(path, i, all.length);
        files.push([path, await getFile(path, entry, known)]);
      }
      const cache = await caches.open(cacheOf(bundle));
      files.push([MANIFEST, new Response(JSON.stringify(manifest))]);
      for (const [path, response] of files) await cache.put(urlOf(path), response);
      onProgress("the golden rows", all.length, all.length);
      await selfTest(await open(bundle));
    } catch (error) {
      if (![before.current, before.previous].includes(bundle)) await caches.delete(cacheOf(bundle));
      throw error;
    }
    const previous = bundle === before.current ? before.previous : before.current;
    await write({ current: bundle, previous, refused: null, proven: false, tries: 0, why: "" });
    await keepOnly(bundle, previous);
  });
}

// Deletes the files of an update that was interrupted.
export const tidy = () => withLock(async () => {
  const { current, previous } = await state();
  await keepOnly(current, previous);
});

async function keepOnly(...bundles) {
  const retained = bundles.map(cacheOf);
  for (const name of await caches.keys()) if (name.startsWith(`${NAME} `) && !retained.includes(name)) await caches.delete(name);
}

// Returns where this device has the file of each SHA-256, so that an update downloads only the files that have changed.
async function filesByDigest(bundles) {
  const found = new Map();
  for (const bundle of bundles.filter(Boolean)) {
    const manifest = await manifestOf(bundle).catch(() => ({ files: {} }));
    for (const [path, entry] of Object.entries(manifest.files)) found.set(entry.sha256, { bundle, path });
  }
  return found;
}

async function getFile(path, entry, known) {
  const place = known.get(entry.sha256);
  const stored = place && await cached(place.bundle, place.path).catch(() => null);
  if (stored && !await contentProblem(await stored.clone().arrayBuffer(), entry)) return asResponse(path, stored);
  // An HTTP cache may have a damaged copy. The second download bypasses it.
  for (const cache of ["default", "reload"]) {
    const response = await download(path, entry.sha256, cache);
    const problem = await contentProblem(await response.clone().arrayBuffer(), entry);
    if (!problem) return asResponse(path, response);
    if (cache === "reload") throw new DeviceError(`${path} ${problem}.`);
  }
}

async function download(path, digest, cache) {
  let response;
  try {
    response = await fetch(`${urlOf(path)}?sha256=${digest}`, { cache });
    if (response.ok) return new Response(await response.arrayBuffer(), { headers: response.headers });
  } catch {
    throw new DeviceError(`The download of ${path} failed or is incomplete.`);
  }
  throw new DeviceError(`The server returned status ${response.status} for ${path}.`);
}

async function contentProblem(bytes, entry) {
  if (bytes.byteLength !== entry.bytes) return `has ${bytes.byteLength} bytes instead of the ${entry.bytes} in manifest.json`;
  return await sha256(bytes) === entry.sha256 ? "" : "has another SHA-256 than in manifest.json";
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return [...digest].map(byte => byte.toString(16).padStart(2, "0")).join("");
}

// Returns a response to store, with the correct media type for any server, and with the Content-Security-Policy of the server.
async function asResponse(path, response) {
  const media = MEDIA[path.split(".").at(-1)] || "application/octet-stream";
  const policy = response.headers.get("Content-Security-Policy");
  const headers = { "Content-Type": media, "X-Content-Type-Options": "nosniff" };
  if (policy) headers["Content-Security-Policy"] = policy;
  return new Response(await response.arrayBuffer(), { headers });
}

async function cached(bundle, path) {
  const found = await caches.match(urlOf(path), { cacheName: cacheOf(bundle) });
  if (!found) throw new DeviceError(`${path} of bundle ${bundle} is no longer on this device.`);
  return found;
}

const read = async (bundle, path) => (await cached(bundle, path)).arrayBuffer();
const json = async (bundle, path) => (await cached(bundle, path)).json();
const manifestOf = bundle => json(bundle, MANIFEST);

// Loads the model of a bundle.
export async function open(bundle) {
  const manifest = await manifestOf(bundle), paths = Object.keys(manifest.files);
  const [script, binary] = ["mjs", "wasm"].map(kind => paths.find(path => path.startsWith("ort/") && path.endsWith(`.${kind}`)));
  const [labels, golden] = await Promise.all(["model/label.json", "model/golden.json"].map(path => json(bundle, path)));
  const ort = await import(urlOf(`@${bundle}/${script}`));
  ort.env.logLevel = "error";
  // Several threads need cross-origin isolation, which requires headers that not every server sends.
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = await read(bundle, binary);
  const graph = new Uint8Array(await read(bundle, `model/${golden.model}`));
  const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"], logSeverityLevel: 3 });
  const names = Object.keys(labels).map((_, i) => labels[i]);
  const output = session.outputMetadata.find(item => item.isTensor && item.type === "float32" && item.shape.length === 2);
  if (!output) throw new DeviceError("The model has no tensor of probabilities, the only form that this runtime supports.");
  // The graph decides the label, which may not be that of the highest probability.
  const own = golden.label === "graph" && session.outputNames.find(name => name !== output.name);
  return new Model({ ort, session, output: output.name, own, labels: names, golden, manifest });
}

// A number of the graph may be a BigInt, and a truth value is 0 or 1.
const keyOf = value => String(typeof value === "boolean" ? Number(value) : value);

// Model that returns a list of probabilities for each row of numbers, with the index of the label as its property `best`.
class Model {
  constructor(parts) {
    Object.assign(this, parts);
  }

  async predict(rows) {
    const { session, labels } = this, width = rows[0].length;
    // A missing value is NaN.
    const numbers = Float32Array.from(rows.flat(), value => value === null ? NaN : value);
    const tensor = new this.ort.Tensor("float32", numbers, [rows.length, width]);
    const found = await session.run({ [session.inputNames[0]]: tensor }, [this.output, ...(this.own ? [this.own] : [])]);
    const { data, dims } = found[this.output];
    if (dims.length !== 2 || dims[0] !== rows.length || dims[1] !== labels.length) {
      throw new DeviceError(`The model's output has the shape [${dims}]; it must be [${[rows.length, labels.length]}].`);
    }
    return rows.map((_, i) => {
      const probabilities = [...data.slice(i * labels.length, (i + 1) * labels.length)];
      const best = this.own ? this.indexOf(found[this.own].data[i]) : probabilities.indexOf(Math.max(...probabilities));
      return Object.assign(probabilities, { best });
    });
  }

  // Returns the mean time of a prediction in milliseconds. The clock of a browser is too coarse for a single prediction.
  async latency(row) {
    const began = performance.now();
    for (let i = 0; i < LATENCY_RUNS; i++) await this.predict([row]);
    return (performance.now() - began) / LATENCY_RUNS;
  }

  // Returns the index of a label of the graph.
  indexOf(value) {
    const found = this.golden.classes.findIndex(one => keyOf(one) === keyOf(value));
    if (found < 0) throw new DeviceError("The model's label is not one of its classes.");
    return found;
  }

  label(probabilities) {
    return this.labels[probabilities.best];
  }
}

// Runs the golden rows, and returns their number and the maximum deviation. Throws DeviceError on a mismatch.
export async function selfTest(model) {
  const { golden } = model, predictions = await model.predict(golden.rows.map(entry => entry.row));
  let worst = 0;
  for (const [i, expected] of golden.rows.entries()) {
    const label = model.label(predictions[i]);
    const off = Math.max(...expected.probabilities.map((p, j) => Math.abs(p - predictions[i][j])));
    // Not "off > tolerance": a NaN must not pass.
    if (label !== expected.label || !(off <= golden.tolerance)) {
      const found = `Golden row ${i} returns ${label}, off by ${off.toExponential(1)}`;
      throw new DeviceError(`${found}; expected ${expected.label} within ${golden.tolerance}.`);
    }
    worst = Math.max(worst, off);
  }
  return { rows: golden.rows.length, worst };
}
