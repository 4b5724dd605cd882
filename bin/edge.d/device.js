// Bundles on this device: the current one, updates, and the model of a bundle, ready to run.

const BASE = new URL("./", import.meta.url);
// sw.js has the same rule.
export const NAME = `iris-edge ${BASE.pathname}`;
const STATE = new URL("state", BASE).href;
const MANIFEST = "manifest.json";
const MAX_BYTES = 256 * 1024 * 1024;
const MEDIA = {
  css: "text/css; charset=utf-8", html: "text/html; charset=utf-8", js: "text/javascript; charset=utf-8",
  json: "application/json", mjs: "text/javascript; charset=utf-8", wasm: "application/wasm",
};
const LATENCY_RUNS = 50;

const at = path => new URL(path, BASE).href;
const cacheOf = bundle => `${NAME} ${bundle}`;

// Failure with a one-sentence message for the user.
export class Refused extends Error {}
export class Unreached extends Refused {}

// Current and previous bundle, whether the page of the current one has started, the rejected bundle, and the reason.
// It is one entry of one cache, so that it changes as a whole or not at all.
export async function state() {
  const kept = await caches.match(STATE, { cacheName: NAME });
  return kept ? kept.json() : { current: null, previous: null, refused: null, proven: true, tries: 0, why: "" };
}

async function write(next) {
  await (await caches.open(NAME)).put(STATE, new Response(JSON.stringify(next)));
}

export async function proven() {
  await write({ ...await state(), proven: true, tries: 0 });
}

// Runs one action at a time over all tabs.
const alone = act => navigator.locks.request(NAME, act);

export function rollBack(why) {
  return alone(async () => {
    const { current, previous } = await state();
    if (previous) await write({ current: previous, previous: current, refused: current, proven: true, tries: 0, why });
    return previous;
  });
}

// Resolves when the service worker controls this page: it may be new, or the page may have bypassed it.
export async function underControl() {
  const workers = navigator.serviceWorker;
  const found = await workers.getRegistration(BASE.href);
  // Without a network the browser cannot look for a newer worker, and the page does not need one.
  const coming = workers.register(at("sw.js"), { updateViaCache: "none" });
  const registration = await coming.catch(error => found || Promise.reject(error));
  const installing = registration.installing || registration.waiting;
  await new Promise((resolve, reject) => {
    if (registration.active) return resolve();
    installing.addEventListener("statechange", () => {
      if (installing.state === "activated") resolve();
      if (installing.state === "redundant") reject(new Refused("sw.js does not match manifest.json, or its download is incomplete."));
    });
  });
  if (workers.controller) return;
  await new Promise(resolve => {
    workers.addEventListener("controllerchange", resolve, { once: true });
    registration.active.postMessage("claim");
  });
}

// Returns the current manifest of the server.
export async function offered() {
  let answer;
  try {
    answer = await fetch(at(MANIFEST), { cache: "no-store" });
  } catch {
    throw new Unreached("The server cannot be reached.");
  }
  if (!answer.ok) throw new Refused(`The server returned status ${answer.status} for manifest.json.`);
  const manifest = await answer.json().catch(() => ({}));
  const why = await faultOf(manifest);
  if (why) throw new Refused(`manifest.json ${why}.`);
  return manifest;
}

async function faultOf(manifest) {
  const files = Object.entries(manifest.files || {});
  const path = /^[\w-][\w.-]*(\/[\w-][\w.-]*)*$/, digest = /^[0-9a-f]{64}$/;
  const named = /^[0-9A-Za-z][0-9A-Za-z._+-]{0,79}-([0-9a-f]{12})$/.exec(manifest.bundle);
  if (!named || !manifest.model || !files.length) return "does not have valid members bundle, model, and files";
  const fits = ([name, one]) => path.test(name) && digest.test(one.sha256) && Number.isSafeInteger(one.bytes) && one.bytes >= 0;
  if (!files.every(fits)) return "lists a file that is invalid in a bundle";
  if (files.reduce((sum, [, one]) => sum + one.bytes, 0) > MAX_BYTES) return `requires more than ${MAX_BYTES} bytes`;
  const text = files.map(([name, one]) => `${one.sha256}  ${name}\n`).sort().join("");
  const mark = (await sha256(new TextEncoder().encode(text))).slice(0, 12);
  return mark === named[1] ? "" : "was changed or damaged: the name of its bundle does not match its files";
}

// Downloads the bundle of this manifest and makes it the current one, if every file matches the manifest and the model passes its
// golden rows here. Otherwise the current bundle stays. `report` is called for each file.
// `again` downloads the current bundle if the device has lost a part of it.
export function install(manifest, report, again = false) {
  return alone(async () => {
    const { bundle } = manifest, before = await state(), known = await digests([before.current, before.previous]);
    if (bundle === before.current && !again) return;
    try {
      const files = [], all = Object.entries(manifest.files);
      for (const [i, [path, told]] of all.entries()) {
        report(path, i, all.length);
        files.push([path, await file(path, told, known)]);
      }
      const cache = await caches.open(cacheOf(bundle));
      files.push([MANIFEST, new Response(JSON.stringify(manifest))]);
      for (const [path, response] of files) await cache.put(at(path), response);
      report("the golden rows", all.length, all.length);
      await prove(await open(bundle));
    } catch (error) {
      if (![before.current, before.previous].includes(bundle)) await caches.delete(cacheOf(bundle));
      throw error;
    }
    const previous = bundle === before.current ? before.previous : before.current;
    await write({ current: bundle, previous, refused: null, proven: false, tries: 0, why: "" });
    await keepOnly(bundle, previous);
  });
}

// Removes the files of an update that was interrupted.
export const tidy = () => alone(async () => {
  const { current, previous } = await state();
  await keepOnly(current, previous);
});

async function keepOnly(...bundles) {
  const wanted = bundles.map(cacheOf);
  for (const name of await caches.keys()) if (name.startsWith(`${NAME} `) && !wanted.includes(name)) await caches.delete(name);
}

// Returns the local file of each SHA-256, so that an update downloads only changed files.
async function digests(bundles) {
  const found = new Map();
  for (const bundle of bundles.filter(Boolean)) {
    const manifest = await manifestOf(bundle).catch(() => ({ files: {} }));
    for (const [path, one] of Object.entries(manifest.files)) found.set(one.sha256, { bundle, path });
  }
  return found;
}

async function file(path, told, known) {
  const here = known.get(told.sha256);
  const had = here && await kept(here.bundle, here.path).catch(() => null);
  if (had && !await faultIn(await had.clone().arrayBuffer(), told)) return asResponse(path, had);
  // A cache on the way may have a damaged copy. The second request bypasses it.
  for (const cache of ["default", "reload"]) {
    const answer = await download(path, told.sha256, cache);
    const why = await faultIn(await answer.clone().arrayBuffer(), told);
    if (!why) return asResponse(path, answer);
    if (cache === "reload") throw new Refused(`${path} ${why}.`);
  }
}

async function download(path, digest, cache) {
  let answer;
  try {
    answer = await fetch(`${at(path)}?sha256=${digest}`, { cache });
    if (answer.ok) return new Response(await answer.arrayBuffer(), { headers: answer.headers });
  } catch {
    throw new Refused(`The download of ${path} failed or is incomplete.`);
  }
  throw new Refused(`The server returned status ${answer.status} for ${path}.`);
}

async function faultIn(bytes, told) {
  if (bytes.byteLength !== told.bytes) return `has ${bytes.byteLength} bytes instead of the ${told.bytes} in manifest.json`;
  return await sha256(bytes) === told.sha256 ? "" : "has another SHA-256 than in manifest.json";
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return [...digest].map(byte => byte.toString(16).padStart(2, "0")).join("");
}

// Stores a file with the right media type, and with the policy of the server.
async function asResponse(path, answer) {
  const media = MEDIA[path.split(".").at(-1)] || "application/octet-stream";
  const policy = answer.headers.get("Content-Security-Policy");
  const headers = { "Content-Type": media, "X-Content-Type-Options": "nosniff" };
  if (policy) headers["Content-Security-Policy"] = policy;
  return new Response(await answer.arrayBuffer(), { headers });
}

async function kept(bundle, path) {
  const found = await caches.match(at(path), { cacheName: cacheOf(bundle) });
  if (!found) throw new Refused(`${path} of bundle ${bundle} is no longer on this device.`);
  return found;
}

const read = async (bundle, path) => (await kept(bundle, path)).arrayBuffer();
const json = async (bundle, path) => (await kept(bundle, path)).json();
const manifestOf = bundle => json(bundle, MANIFEST);

// Returns the model of a bundle, ready to run.
export async function open(bundle) {
  const manifest = await manifestOf(bundle), paths = Object.keys(manifest.files);
  const [script, binary] = ["mjs", "wasm"].map(kind => paths.find(path => path.startsWith("ort/") && path.endsWith(`.${kind}`)));
  const [labels, golden] = await Promise.all(["model/label.json", "model/golden.json"].map(path => json(bundle, path)));
  const ort = await import(at(`@${bundle}/${script}`));
  ort.env.logLevel = "error";
  // Several threads require a cross-origin isolated page, which not every server supports.
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = await read(bundle, binary);
  const graph = new Uint8Array(await read(bundle, `model/${golden.model}`));
  const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
  const names = Object.keys(labels).map((_, i) => labels[i]);
  const output = session.outputMetadata.find(one => one.isTensor && one.type === "float32" && one.shape.length === 2);
  if (!output) throw new Refused("The model has no tensor of probabilities, the only form that this runtime supports.");
  return new Model({ ort, session, output: output.name, labels: names, golden, manifest });
}

// Model that takes rows of numbers and returns a list of probabilities for each.
class Model {
  constructor(parts) {
    Object.assign(this, parts);
  }

  async predict(rows) {
    const { session, labels } = this, width = rows[0].length;
    const tensor = new this.ort.Tensor("float32", Float32Array.from(rows.flat()), [rows.length, width]);
    const { data, dims } = (await session.run({ [session.inputNames[0]]: tensor }, [this.output]))[this.output];
    if (dims.length !== 2 || dims[0] !== rows.length || dims[1] !== labels.length) {
      throw new Refused(`The model's output has the shape [${dims}]; it must be [${[rows.length, labels.length]}].`);
    }
    return rows.map((_, i) => [...data.slice(i * labels.length, (i + 1) * labels.length)]);
  }

  // Returns the average milliseconds of a prediction. The clock of a browser is too coarse for a single one.
  async latency(row) {
    const began = performance.now();
    for (let i = 0; i < LATENCY_RUNS; i++) await this.predict([row]);
    return (performance.now() - began) / LATENCY_RUNS;
  }

  label(probabilities) {
    return this.labels[probabilities.indexOf(Math.max(...probabilities))];
  }
}

// Runs the golden rows. Returns their number and the largest difference. Throws Refused on a mismatch.
export async function prove(model) {
  const { golden } = model, answers = await model.predict(golden.rows.map(one => one.row));
  let worst = 0;
  for (const [i, wanted] of golden.rows.entries()) {
    const label = model.label(answers[i]), off = Math.max(...wanted.probabilities.map((p, j) => Math.abs(p - answers[i][j])));
    // Not "off > tolerance": a NaN must not pass.
    if (label !== wanted.label || !(off <= golden.tolerance)) {
      const told = `Golden row ${i} returns ${label}, off by ${off.toExponential(1)}`;
      throw new Refused(`${told}; expected ${wanted.label} within ${golden.tolerance}.`);
    }
    worst = Math.max(worst, off);
  }
  return { rows: golden.rows.length, worst };
}
