// The page: shows predictions of the model on this device, and offers update, rollback, and counts.

import * as counts from "./counts.js";
import * as device from "./device.js";

const SERVER = new URL("../", import.meta.url);
const COLORS = 8;
const SETTLE_MS = 400, SEND_MS = 3000, AGAIN_MS = 15000, TIMEOUT_MS = 10000;
// Paths around 0, 0 within 1. Classes differ by shape and by color.
const SHAPES = [
  "M-1 0a1 1 0 1 0 2 0a1 1 0 1 0-2 0z", "M0-1.1 1.05.85H-1.05z", "M-.87-.87H.87V.87H-.87z",
  "M0-1.2 1.2 0 0 1.2-1.2 0z", "M0 1.1-1.05-.85H1.05z", "M-.38-1.1H.38V-.38H1.1V.38H.38V1.1H-.38V.38H-1.1V-.38H-.38z",
];

const at = id => document.getElementById(id);
const page = { model: null, fields: [], latest: 0, settling: 0, sending: 0, serverless: false, asksAgain: 0, touched: false };

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

const tell = text => { at("status").textContent = text; };
const reason = error => error instanceof device.Refused ? error.message : `${error.name}: ${error.message}`;

function chip(name, text, kind) {
  at(`chip-${name}`).textContent = text;
  at(`chip-${name}`).className = kind;
}

// The start

async function start() {
  if (!isSecureContext || !navigator.serviceWorker) {
    return stop("This page needs https, or the address localhost: browsers allow offline pages only there.");
  }
  try {
    await device.underControl();
    if (!(await device.state()).current) await fetched();
    // A browser that needs space may have evicted a part of the bundle.
    await load().catch(lost => fetched(lost).then(load));
  } catch (error) {
    return stop(reason(error));
  }
  device.tidy().catch(console.error);
  update(false);
}

function stop(why) {
  tell(why);
  chip("model", "No model on this device", "bad");
}

// Installs the bundle of the server. If the server is unreachable, throws `lost`, the reason of the repair.
async function fetched(lost) {
  const manifest = await device.offered().catch(error => { throw lost && error instanceof device.Unreached ? lost : error; });
  await device.install(manifest, progress, Boolean(lost));
}

function progress(what, i, all) {
  chip("model", i < all ? `Fetching ${what} (${i + 1} of ${all})` : "Checking the golden rows", "");
}

// A bundle that fails here is replaced by the previous one.
async function load() {
  const { current, previous, why } = await device.state();
  let model, golden;
  try {
    model = await device.open(current);
    golden = await device.prove(model);
  } catch (error) {
    if (!previous) throw error;
    await device.rollBack(`Bundle ${current} failed on this device: ${reason(error)}`);
    location.reload();
    return;
  }
  await device.proven();
  page.model = model;
  showTool();
  showBundle(golden, await device.state());
  if (why) at("update-told").textContent = why;
  chip("model", `${golden.rows} golden rows passed here`, "good");
  chip("offline", "Ready for offline use", "good");
  put(examples()[0], false);
}

// The bundle

function showBundle(golden, { previous }) {
  const { manifest, ort } = page.model, { model } = manifest;
  const told = {
    Bundle: make("code", { id: "bundle" }, manifest.bundle),
    Model: `${model.name} ${model.version}`,
    Digest: make("code", {}, model.digest),
    "Golden rows": make("span", { id: "golden" }, `all ${golden.rows} passed here, within ${small(golden.worst)}`),
    Runtime: `onnxruntime-web ${ort.env.versions.web}, WebAssembly, one thread`,
    Previous: previous ? make("code", {}, previous) : "none on this device",
  };
  at("facts").replaceChildren(...Object.entries(told).flatMap(([name, what]) => [make("dt", {}, name), make("dd", {}, what)]));
  at("back").disabled = !previous;
  at("counts").disabled = false;
  at("counts").checked = counts.isOn();
  at("title").textContent = `${model.name} on your device`;
  document.title = `${model.name} on your device · iris_wsgi`;
  showCounts("");
}

// Updates from the server. Without the user's request it skips a bundle that was rolled back.
async function update(asked) {
  const say = text => { at("update-told").textContent = text; };
  at("update").disabled = true;
  try {
    const manifest = await device.offered(), { current, refused } = await device.state();
    chip("server", "Server reachable", "good");
    if (manifest.bundle === current) return asked && say("This is the current bundle of the server.");
    if (manifest.bundle === refused && !asked) return;
    say(`Fetching bundle ${manifest.bundle} …`);
    const step = (what, i, all) => say(`Bundle ${manifest.bundle}: ${what}${i < all ? ` (${i + 1} of ${all})` : ""} …`);
    await device.install(manifest, step);
    // Keeps the input of the user.
    if (asked || !page.touched) location.reload();
    else say(`Bundle ${manifest.bundle} is installed and tested. It takes effect at the next load of this page.`);
  } catch (error) {
    const unreached = error instanceof device.Unreached;
    if (unreached) away();
    if (asked || !unreached) say(`Not updated. ${reason(error)} The current bundle stays in use.`);
  } finally {
    at("update").disabled = false;
  }
}

at("update").addEventListener("click", () => update(true));
at("back").addEventListener("click", async () => {
  const { current } = await device.state();
  if (await device.rollBack(`Rolled back from bundle ${current}.`)) location.reload();
});

// The input

const titled = name => name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");
const withUnit = feature => titled(feature.name) + (feature.unit ? ` (${feature.unit})` : "");
const shown = number => String(Number(number.toPrecision(4)));

function showTool() {
  const { labels, manifest } = page.model;
  page.fields = manifest.model.features.map(field);
  at("features").replaceChildren(...page.fields.map(one => one.node));
  at("examples").replaceChildren(...examples().map(one => {
    const button = make("button", { type: "button" }, marker(labels.indexOf(one.label)), one.label);
    button.addEventListener("click", () => put(one));
    return button;
  }));
  at("bars").replaceChildren(...labels.map((name, i) => {
    const label = make("span", { class: "name" }, marker(i), make("span", {}, name));
    const track = make("div", { class: `bar k${i % COLORS}` }, make("i", {}));
    return make("li", {}, label, make("span", { class: "percent" }), track);
  }));
  at("tool").hidden = false;
}

// Returns the first golden row of each label.
function examples() {
  const { labels, golden } = page.model;
  return labels.map(label => golden.rows.find(one => one.label === label)).filter(Boolean);
}

function put(one, asked = true) {
  one.row.forEach((value, i) => page.fields[i].put(value));
  return predict(asked);
}

// One feature. `value` returns a number, or null if the text is not a number. `put` sets it.
function field(feature, i) {
  const { min, max } = feature, ranged = typeof min === "number" && typeof max === "number" && min < max;
  const words = ranged ? `${shown(min)} to ${shown(max)}` : "";
  const text = make("input", { type: "text", id: `field-${i}`, autocomplete: "off", spellcheck: "false" });
  if (ranged && min >= 0) text.inputMode = "decimal";
  const hint = make("p", { class: "soft hint", id: `hint-${i}` }), fault = make("p", { class: "fault", id: `fault-${i}` });
  const step = ranged ? 10 ** Math.floor(Math.log10((max - min) / 20)) : 1, digits = Math.max(0, -Math.round(Math.log10(step)));
  const steps = ranged ? [Math.floor(min / step + 1e-9), Math.ceil(max / step - 1e-9)] : [0, 1];
  const ends = steps.map(end => (end * step).toFixed(digits));
  const told = { "aria-label": `${withUnit(feature)}, slider`, min: ends[0], max: ends[1], step: step.toFixed(digits) };
  const slider = make("input", { type: "range", id: `slider-${i}`, ...told });
  const label = make("label", { for: `field-${i}` }, withUnit(feature));
  const node = make("div", { class: "feature" }, label, ...(ranged ? [slider] : []), text, fault, hint);

  function value() {
    const typed = text.value.trim(), number = Math.fround(Number(typed.replace(",", ".")));
    return typed !== "" && Number.isFinite(number) ? Number(typed.replace(",", ".")) : null;
  }
  function follow() {
    const now = value(), outside = now !== null && ranged && (now < min || now > max);
    if (now !== null) slider.value = now;
    hint.textContent = !ranged ? "" : outside ? `outside the training range: ${words}` : `${words} in training`;
    hint.classList.toggle("outside", outside);
    fault.textContent = now === null ? "This must be a number." : "";
    if (now === null) text.setAttribute("aria-invalid", "true");
    else text.removeAttribute("aria-invalid");
    text.setAttribute("aria-describedby", now === null ? `fault-${i} hint-${i}` : `hint-${i}`);
  }
  function set(number) {
    text.value = String(number);
    follow();
  }
  text.addEventListener("input", () => { follow(); predict(); });
  slider.addEventListener("input", () => { set(Number(Number(slider.value).toFixed(digits))); predict(); });
  return { node, value, put: set };
}

// The prediction

const percent = p => `${(100 * p).toFixed(2)} %`;
const small = number => number === 0 ? "0" : number.toExponential(1);

// Counts only predictions that the user `asked` for, and not the first one of the page.
async function predict(asked = true) {
  const row = page.fields.map(one => one.value()), mine = ++page.latest;
  page.touched ||= asked;
  clearTimeout(page.settling);
  if (row.includes(null)) return showAnswer(null);
  const [probabilities] = await page.model.predict([row]);
  if (mine !== page.latest) return;
  showAnswer(probabilities);
  page.settling = setTimeout(() => settled(row, probabilities, mine, asked), SETTLE_MS);
}

function showAnswer(probabilities) {
  const { labels } = page.model, best = probabilities ? probabilities.indexOf(Math.max(...probabilities)) : -1;
  for (const [i, line] of [...at("bars").children].entries()) {
    line.querySelector("i").style.width = `${100 * (probabilities ? probabilities[i] : 0)}%`;
    line.querySelector(".percent").textContent = probabilities ? percent(probabilities[i]) : "–";
    line.classList.toggle("best", i === best);
  }
  at("label").replaceChildren(...(probabilities ? [marker(best), make("span", {}, labels[best])] : ["–"]));
  const sure = probabilities && percent(probabilities[best]);
  at("sure").textContent = sure ? `with a probability of ${sure}` : "no prediction for this input";
  if (!probabilities) at("latency").textContent = at("agreement").textContent = "–";
}

// Expensive work and requests are done for the final input, not for each step of a slider.
async function settled(row, probabilities, mine, asked) {
  const label = page.model.label(probabilities);
  at("spoken").textContent = `${label}, ${percent(Math.max(...probabilities))}`;
  at("latency").textContent = `${(await page.model.latency(row)).toFixed(3)} ms on this device`;
  if (asked) await counts.add(label);
  showCounts("");
  sendSoon();
  const told = await agreement(row, probabilities);
  if (mine === page.latest) at("agreement").textContent = told;
}

// The server

async function agreement(row, probabilities) {
  if (page.serverless) return "has no predictions";
  if (!navigator.onLine || Date.now() < page.asksAgain) return away();
  const headers = { "Content-Type": "application/json" }, body = JSON.stringify({ data: [row] });
  let answer, document;
  try {
    const signal = AbortSignal.timeout(TIMEOUT_MS);
    answer = await fetch(new URL("predict/proba", SERVER), { method: "POST", headers, body, signal });
    document = await answer.json().catch(() => null);
  } catch {
    page.asksAgain = Date.now() + AGAIN_MS;
    return away();
  }
  chip("server", "Server reachable", "good");
  page.serverless = [404, 405, 501].includes(answer.status);
  if (page.serverless) return "has no predictions";
  if (!answer.ok || !document) return `returned status ${answer.status}`;
  const digest = answer.headers.get("X-Model-Digest");
  if (digest && digest !== page.model.manifest.model.digest) return "has another model than this device";
  const off = Math.max(...document.prediction.map((one, i) => Math.abs(one.probability - probabilities[i])));
  const label = document.prediction.reduce((a, b) => (b.probability > a.probability ? b : a)).label;
  const same = label === page.model.label(probabilities);
  if (!same) return `disagrees: ${label}, probabilities off by ${small(off)}`;
  return off ? `agrees: the same label, probabilities within ${small(off)}` : "agrees: the same label, the same probabilities";
}

function away() {
  chip("server", "Server unreachable, not needed", "");
  return "unreachable, not needed";
}

addEventListener("online", () => {
  page.asksAgain = 0;
  if (page.model) update(false).then(() => Promise.all([predict(false), sendNow()]));
});
addEventListener("offline", away);

// The counts

function showCounts(why) {
  const waiting = counts.waiting(), words = `${waiting} prediction${waiting === 1 ? " waits" : "s wait"} to be reported.`;
  at("counts-told").textContent = !counts.isOn() ? "" : waiting ? `${words} ${why}` : "All counts are reported.";
}

async function sendNow() {
  clearTimeout(page.sending);
  page.sending = 0;
  if (counts.isOn() && navigator.onLine) showCounts(await counts.send());
}

function sendSoon() {
  page.sending ||= setTimeout(sendNow, SEND_MS);
}

at("counts").addEventListener("change", async event => {
  await counts.turn(event.target.checked);
  showCounts("");
});

start();
