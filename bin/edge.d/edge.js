// Page: reads the input, shows the prediction of the model on this device, and controls updates, rollback, and counts.

import * as counts from "./counts.js";
import * as device from "./device.js";

const SERVER = new URL("../", import.meta.url);
const COLORS = 8;
const SETTLE_MS = 400, SEND_MS = 3000, RETRY_MS = 15000, TIMEOUT_MS = 10000;
// Shapes around the origin with a radius of about 1. Classes have different shapes and different colors.
const SHAPES = [
  "M-1 0a1 1 0 1 0 2 0a1 1 0 1 0-2 0z", "M0-1.1 1.05.85H-1.05z", "M-.87-.87H.87V.87H-.87z",
  "M0-1.2 1.2 0 0 1.2-1.2 0z", "M0 1.1-1.05-.85H1.05z", "M-.38-1.1H.38V-.38H1.1V.38H.38V1.1H-.38V.38H-1.1V-.38H-.38z",
];

const byId = id => document.getElementById(id);
const page = { model: null, fields: [], latest: 0, settling: 0, sending: 0, noServer: false, retryAt: 0, edited: false };

function make(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function marker(i) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS(svg.namespaceURI, "path");
  const attributes = { class: `marker k${i % COLORS}`, viewBox: "-1.2 -1.2 2.4 2.4", "aria-hidden": "true" };
  for (const [key, value] of Object.entries(attributes)) svg.setAttribute(key, value);
  path.setAttribute("d", SHAPES[i % SHAPES.length]);
  path.setAttribute("fill", "currentColor");
  svg.append(path);
  return svg;
}

const showStatus = text => { byId("status").textContent = text; };
const reason = error => error instanceof device.DeviceError ? error.message : `${error.name}: ${error.message}`;

function chip(name, text, kind) {
  byId(`chip-${name}`).textContent = text;
  byId(`chip-${name}`).className = kind;
}

// Start

async function start() {
  if (!isSecureContext || !navigator.serviceWorker) {
    return stop("This page needs https, or the address localhost: browsers allow offline pages only there.");
  }
  try {
    await device.underControl();
    if (!(await device.state()).current) await download();
    // A browser that needs space may have deleted some of the files.
    await load().catch(error => download(error).then(load));
  } catch (error) {
    return stop(reason(error));
  }
  device.tidy().catch(console.error);
  update(false);
}

function stop(why) {
  showStatus(why);
  chip("model", "No model on this device", "bad");
}

// Downloads the current bundle of the server. `cause` is the error of a damaged bundle; the page shows it if there is no server.
async function download(cause) {
  const manifest = await device.fetchManifest().catch(error => {
    throw cause && error instanceof device.ServerUnreachable ? cause : error;
  });
  await device.install(manifest, progress, Boolean(cause));
}

function progress(name, i, all) {
  chip("model", i < all ? `Fetching ${name} (${i + 1} of ${all})` : "Checking the golden rows", "");
}

// Loads and tests the current bundle. If it fails on this device, the page returns to the previous bundle.
async function load() {
  const { current, previous, why } = await device.state();
  let model, golden;
  try {
    model = await device.open(current);
    golden = await device.selfTest(model);
  } catch (error) {
    if (!previous) throw error;
    await device.rollBack(`Bundle ${current} failed on this device: ${reason(error)}`);
    location.reload();
    return;
  }
  await device.markStarted();
  page.model = model;
  showTool();
  showBundle(golden, await device.state());
  if (why) byId("update-status").textContent = why;
  chip("model", `${golden.rows} golden rows passed here`, "good");
  chip("offline", "Ready for offline use", "good");
  put(examples()[0], false);
}

// Bundle

function showBundle(golden, { previous }) {
  const { manifest, ort } = page.model, { model } = manifest;
  const facts = {
    Bundle: make("code", { id: "bundle" }, manifest.bundle),
    Model: `${model.name} ${model.version}`,
    Digest: make("code", {}, model.digest),
    // The build made this model from that of the server.
    ...(model.source ? { "Made from": make("code", {}, model.source) } : {}),
    "Golden rows": make("span", { id: "golden" }, `all ${golden.rows} passed here, within ${small(golden.worst)}`),
    Runtime: `onnxruntime-web ${ort.env.versions.web}, WebAssembly, one thread`,
    Previous: previous ? make("code", {}, previous) : "none on this device",
  };
  const terms = Object.entries(facts).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
  byId("facts").replaceChildren(...terms);
  byId("back").disabled = !previous;
  byId("counts").disabled = false;
  byId("counts").checked = counts.isOn();
  byId("title").textContent = `${model.name} on your device`;
  document.title = `${model.name} on your device · iris_wsgi`;
  showCounts("");
}

// Downloads a newer bundle of the server. Without a request of the user, a bundle that was rolled back is not installed again.
async function update(requested) {
  const show = text => { byId("update-status").textContent = text; };
  byId("update").disabled = true;
  try {
    const manifest = await device.fetchManifest(), { current, refused } = await device.state();
    chip("server", "Server reachable", "good");
    if (manifest.bundle === current) return requested && show("This is the current bundle of the server.");
    if (manifest.bundle === refused && !requested) return;
    show(`Fetching bundle ${manifest.bundle} …`);
    const step = (name, i, all) => show(`Bundle ${manifest.bundle}: ${name}${i < all ? ` (${i + 1} of ${all})` : ""} …`);
    await device.install(manifest, step);
    // A reload would delete the input of the user.
    if (requested || !page.edited) location.reload();
    else show(`Bundle ${manifest.bundle} is installed and tested. It takes effect at the next load of this page.`);
  } catch (error) {
    const isUnreachable = error instanceof device.ServerUnreachable;
    if (isUnreachable) showUnreachable();
    if (requested || !isUnreachable) show(`Not updated. ${reason(error)} The current bundle stays in use.`);
  } finally {
    byId("update").disabled = false;
  }
}

byId("update").addEventListener("click", () => update(true));
byId("back").addEventListener("click", async () => {
  const { current } = await device.state();
  if (await device.rollBack(`Rolled back from bundle ${current}.`)) location.reload();
});

// Input

const title = name => name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");
const withUnit = feature => title(feature.name) + (feature.unit ? ` (${feature.unit})` : "");
// Returns the number with the fewest digits that is the same float32.
function shortest(number) {
  for (let digits = 1; digits < 10; digits++) {
    const short = Number(number.toPrecision(digits));
    if (Math.fround(short) === Math.fround(number)) return short;
  }
  return number;
}
const shown = number => String(Number(number.toPrecision(4)));

function showTool() {
  const { labels, manifest } = page.model;
  page.fields = manifest.model.features.map(field);
  byId("features").replaceChildren(...page.fields.map(item => item.node));
  byId("examples").replaceChildren(...examples().map(example => {
    const button = make("button", { type: "button" }, marker(labels.indexOf(example.label)), example.label);
    button.addEventListener("click", () => put(example));
    return button;
  }));
  byId("bars").replaceChildren(...labels.map((name, i) => {
    const label = make("span", { class: "name" }, marker(i), make("span", {}, name));
    const track = make("div", { class: `bar k${i % COLORS}` }, make("i", {}));
    return make("li", {}, label, make("span", { class: "percent" }), track);
  }));
  byId("tool").hidden = false;
}

// Returns the first golden row of each label.
function examples() {
  const { labels, golden } = page.model;
  return labels.map(label => golden.rows.find(entry => entry.label === label)).filter(Boolean);
}

function put(example, requested = true) {
  example.row.forEach((value, i) => page.fields[i].put(value));
  return predict(requested);
}

// Creates the controls of a feature: `value` returns the number, null for a missing value, or undefined for invalid input, and
// `put` sets it.
function field(feature, i) {
  const { min, max } = feature, hasRange = typeof min === "number" && typeof max === "number" && min < max;
  const words = hasRange ? `${shown(min)} to ${shown(max)}` : "";
  const text = make("input", { type: "text", id: `field-${i}`, autocomplete: "off", spellcheck: "false" });
  if (hasRange && min >= 0) text.inputMode = "decimal";
  const hint = make("p", { class: "soft hint", id: `hint-${i}` }), fault = make("p", { class: "fault", id: `fault-${i}` });
  const step = hasRange ? 10 ** Math.floor(Math.log10((max - min) / 20)) : 1, digits = Math.max(0, -Math.round(Math.log10(step)));
  const steps = hasRange ? [Math.floor(min / step + 1e-9), Math.ceil(max / step - 1e-9)] : [0, 1];
  const ends = steps.map(end => (end * step).toFixed(digits));
  const attributes = { "aria-label": `${withUnit(feature)}, slider`, min: ends[0], max: ends[1], step: step.toFixed(digits) };
  const slider = make("input", { type: "range", id: `slider-${i}`, ...attributes });
  const label = make("label", { for: `field-${i}` }, withUnit(feature));
  const node = make("div", { class: "feature" }, label, ...(hasRange ? [slider] : []), text, fault, hint);

  function value() {
    const typed = text.value.trim(), number = Math.fround(Number(typed.replace(",", ".")));
    if (typed === "") return feature.missing ? null : undefined;
    return Number.isFinite(number) ? Number(typed.replace(",", ".")) : undefined;
  }
  function validate() {
    const now = value(), isNumber = typeof now === "number", isInvalid = now === undefined;
    const outside = isNumber && hasRange && (now < min || now > max);
    if (isNumber) slider.value = now;
    const range = !hasRange ? "" : outside ? `outside the training range: ${words}` : `${words} in training`;
    hint.textContent = [range, feature.missing ? "may be empty" : ""].filter(Boolean).join("; ");
    hint.classList.toggle("outside", outside);
    fault.textContent = isInvalid ? "This must be a number." : "";
    if (isInvalid) text.setAttribute("aria-invalid", "true");
    else text.removeAttribute("aria-invalid");
    text.setAttribute("aria-describedby", isInvalid ? `fault-${i} hint-${i}` : `hint-${i}`);
  }
  function set(number) {
    text.value = number === null ? "" : String(shortest(number));
    validate();
  }
  text.addEventListener("input", () => { validate(); predict(); });
  slider.addEventListener("input", () => { set(Number(Number(slider.value).toFixed(digits))); predict(); });
  return { node, value, put: set };
}

// Prediction

const percent = p => `${(100 * p).toFixed(2)} %`;
const small = number => number === 0 ? "0" : number.toExponential(1);

// Predicts the current input. A prediction that the user did not request, as at the start of the page, is not counted.
async function predict(requested = true) {
  const row = page.fields.map(item => item.value()), mine = ++page.latest;
  page.edited ||= requested;
  clearTimeout(page.settling);
  if (row.includes(undefined)) return showPrediction(null);
  const [probabilities] = await page.model.predict([row]);
  if (mine !== page.latest) return;
  showPrediction(probabilities);
  page.settling = setTimeout(() => settled(row, probabilities, mine, requested), SETTLE_MS);
}

function showPrediction(probabilities) {
  const { labels } = page.model, best = probabilities ? probabilities.best : -1;
  for (const [i, line] of [...byId("bars").children].entries()) {
    line.querySelector("i").style.width = `${100 * (probabilities ? probabilities[i] : 0)}%`;
    line.querySelector(".percent").textContent = probabilities ? percent(probabilities[i]) : "–";
    line.classList.toggle("best", i === best);
  }
  byId("label").replaceChildren(...(probabilities ? [marker(best), make("span", {}, labels[best])] : ["–"]));
  const probability = probabilities && percent(probabilities[best]);
  byId("confidence").textContent = probability ? `with a probability of ${probability}` : "no prediction for this input";
  if (!probabilities) byId("latency").textContent = byId("agreement").textContent = "–";
}

// Measures, counts, and asks the server once the input stays the same, not for each step of a slider.
async function settled(row, probabilities, mine, requested) {
  const label = page.model.label(probabilities);
  byId("announcement").textContent = `${label}, ${percent(probabilities[probabilities.best])}`;
  byId("latency").textContent = `${(await page.model.latency(row)).toFixed(3)} ms on this device`;
  if (requested) await counts.add(label);
  showCounts("");
  sendSoon();
  const result = await agreement(row, probabilities);
  if (mine === page.latest) byId("agreement").textContent = result;
}

// Server

async function agreement(row, probabilities) {
  if (page.noServer) return "has no predictions";
  if (!navigator.onLine || Date.now() < page.retryAt) return showUnreachable();
  const headers = { "Content-Type": "application/json" }, body = JSON.stringify({ data: [row] });
  let response, document;
  try {
    const signal = AbortSignal.timeout(TIMEOUT_MS);
    // Only this response has the label if it is not that of the highest probability.
    const path = page.model.own ? "predict/batch" : "predict/proba";
    response = await fetch(new URL(path, SERVER), { method: "POST", headers, body, signal });
    document = await response.json().catch(() => null);
  } catch {
    page.retryAt = Date.now() + RETRY_MS;
    return showUnreachable();
  }
  chip("server", "Server reachable", "good");
  page.noServer = [404, 405, 501].includes(response.status);
  if (page.noServer) return "has no predictions";
  if (!response.ok || !document) return `returned status ${response.status}`;
  const digest = response.headers.get("X-Model-Digest");
  const { source, digest: expected } = page.model.manifest.model;
  if (digest && digest !== (source || expected)) return "has another model than this device";
  const pairs = document.prediction || document.probabilities[0].map((probability, i) => ({ label: document.classes[i], probability }));
  const off = Math.max(...pairs.map((entry, i) => Math.abs(entry.probability - probabilities[i])));
  const label = document.labels ? document.labels[0] : pairs.reduce((a, b) => (b.probability > a.probability ? b : a)).label;
  const same = label === page.model.label(probabilities);
  if (!same) return `disagrees: ${label}, probabilities off by ${small(off)}`;
  return off ? `agrees: the same label, probabilities within ${small(off)}` : "agrees: the same label, the same probabilities";
}

function showUnreachable() {
  chip("server", "Server unreachable, not needed", "");
  return "unreachable, not needed";
}

addEventListener("online", () => {
  page.retryAt = 0;
  if (page.model) update(false).then(() => Promise.all([predict(false), sendNow()]));
});
addEventListener("offline", showUnreachable);

// Counts

function showCounts(why) {
  const waiting = counts.waiting(), words = `${waiting} prediction${waiting === 1 ? " waits" : "s wait"} to be reported.`;
  byId("counts-status").textContent = !counts.isOn() ? "" : waiting ? `${words} ${why}` : "All counts are reported.";
}

async function sendNow() {
  clearTimeout(page.sending);
  page.sending = 0;
  if (counts.isOn() && navigator.onLine) showCounts(await counts.send());
}

function sendSoon() {
  page.sending ||= setTimeout(sendNow, SEND_MS);
}

byId("counts").addEventListener("change", async event => {
  await counts.turn(event.target.checked);
  showCounts("");
});

start();
