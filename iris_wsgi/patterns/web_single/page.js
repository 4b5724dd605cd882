"use strict";

// Example rows of the Iris model.
const FLOWERS = { setosa: [5.1, 3.5, 1.4, 0.2], versicolor: [6.7, 3.1, 4.7, 1.5], virginica: [7.2, 3.6, 6.1, 2.5] };
const MAX_EXAMPLES = 12, MAX_BARS = 12, MAX_NAMES = 40, MANY_FEATURES = 8;
// The rest of the features of a wide model are one field of JSON.
const MAX_FIELDS = 100;
const INTEGER = /^u?int\d+$/;
// One more than the number of shapes, so that each of the first 42 classes has its own pair of shape and color.
const COLORS = 7;
const PAUSE_MS = 80, SPEAK_MS = 700, TIMEOUT_MS = 15000;
// The commands name a variable, and never show the token.
const CURL_TOKEN = '-H "Authorization: Bearer $IRIS_TOKEN"';
// Transient failures.
const TRANSIENT = [0, 429, 502, 503, 504];
const LINKS = { "/docs": "API page", "/openapi.json": "OpenAPI description", "/metrics": "Metrics", "/edge/": "The model on your device" };

const at = id => document.getElementById(id);
const state = { model: null, columns: [], path: "", fields: [], training: null, answer: null, latest: 0, timer: 0, again: 0, pause: 1, speaking: 0,
  api: null, role: "", token: "", samples: [] };

const make = (name, ...what) => dressed(document.createElement(name), ...what);
const draw = (name, ...what) => dressed(document.createElementNS("http://www.w3.org/2000/svg", name), ...what);

function dressed(node, attributes = {}, ...children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// The server

// Sends a request. Throws a problem if the server cannot be reached, or for an unsuccessful status.
async function ask(path, body, { method = body === undefined ? "GET" : "POST", headers = {} } = {}) {
  const credentials = state.token ? { Authorization: `Bearer ${state.token}` } : {};
  const media = body === undefined ? {} : { "Content-Type": "application/json" };
  const options = { method, body, headers: { Accept: "application/json", ...media, ...credentials, ...headers }, signal: AbortSignal.timeout(TIMEOUT_MS) };
  const began = performance.now();
  let answer, document;
  try {
    answer = await fetch(path, options);
    document = await answer.json();
  } catch {
    const detail = answer ? `The response of the server cannot be read (status ${answer.status}).` : "The server cannot be reached.";
    throw { status: answer ? answer.status : 0, detail, after: 0, errors: [] };
  }
  if (answer.status === 401) at("access").hidden = false;
  if (answer.ok) return { document, status: answer.status, headers: answer.headers, digest: answer.headers.get("X-Model-Digest"), ms: performance.now() - began };
  const after = Number(answer.headers.get("Retry-After")) || 0;
  const detail = document.detail || document.error || `The server returned status ${answer.status}.`;
  throw { status: answer.status, detail, after, errors: document.errors || [], headers: answer.headers };
}

function tell(text) {
  if (at("status").textContent !== text) at("status").textContent = text;
}

// Shows the problem, and retries the action if the failure may be transient.
function trouble(problem, action) {
  if (!TRANSIENT.includes(problem.status)) return tell(problem.detail || String(problem));
  const seconds = Math.max(state.pause, problem.after);
  state.pause = Math.min(2 * state.pause, 30);
  tell(`${problem.detail} Retrying in ${seconds} s.`);
  state.again = setTimeout(action, 1000 * seconds);
}

async function start() {
  await refresh();
  try {
    const { document: api } = await ask("openapi.json");
    const predicts = api.paths["/predict"] && api.paths["/metadata"];
    const metadata = predicts && (await ask("metadata")).document;
    state.training = predicts && api.paths["/training"] ? (await ask("training")).document : null;
    state.pause = 1;
    tell("");
    at("access").hidden = true;
    state.api = api;
    showLinks(api);
    if (predicts) showTool(metadata);
    else showRoutes(api.paths);
    await showPatterns();
  } catch (problem) {
    if (problem.status === 401) showAccess(problem);
    else trouble(problem, start);
  }
}

function showAccess(problem) {
  at("lead").textContent = "This server requires a token.";
  at("token-fault").textContent = state.token ? problem.detail : "";
  at("token").focus();
}

// The token stays in a variable of this page. A reload forgets it.
at("access").querySelector("form").addEventListener("submit", event => {
  event.preventDefault();
  const token = at("token").value.trim();
  if (!/^[!-~]+$/.test(token)) {
    at("token-fault").textContent = "A token has letters, digits, and - . _ ~ + / = only.";
    return;
  }
  at("token").value = at("token-fault").textContent = "";
  state.token = token;
  start();
});

// Sends at most one request in PAUSE_MS, however fast the slider moves.
function soon() {
  state.timer ||= setTimeout(predict, PAUSE_MS);
  showCurl();
}

async function predict() {
  clearTimeout(state.timer);
  clearTimeout(state.again);
  state.timer = 0;
  const mine = ++state.latest;
  showCurl();
  try {
    const { document, digest } = await ask(state.path, bodyOf(values()));
    if (mine !== state.latest) return;
    state.pause = 1;
    tell(digest === state.model.digest ? "" : "This server has another model now. Reload the page to see it.");
    showFaults([]);
    showAnswer(answerOf(document));
  } catch (problem) {
    if (mine !== state.latest) return;
    showAnswer(null);
    if (showFaults(problem.errors || [])) tell("");
    else trouble(problem, predict);
  }
}

const values = () => state.fields.flatMap(field => field.value());
const bodyOf = row => `{"data": [[${row.map(value => JSON.stringify(value)).join(", ")}]]}`;

// The server and its model

function showLinks(api) {
  const there = Object.entries(LINKS).filter(([path]) => api.paths[path]);
  at("links").replaceChildren(...there.map(([path, text]) => make("a", { href: path.slice(1) }, text)));
}

function showRoutes(paths) {
  document.title = `${state.role} · iris_wsgi`;
  at("title").textContent = `Role ${state.role}`;
  at("lead").textContent = "Try what this role serves. The list of its routes follows.";
  const lines = Object.entries(paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, told]) => {
    const name = make("code", {}, path);
    const asked = method === "get" && path !== "/" && !path.includes("{");
    const place = asked ? make("a", { href: path.slice(1) }, name) : name;
    return make("li", {}, make("code", {}, method.toUpperCase()), make("span", {}, place), make("span", { class: "soft" }, told.summary));
  }));
  at("routes").replaceChildren(...lines);
  at("served").hidden = false;
}

function showTool(metadata) {
  const model = state.model = metadata.model;
  document.title = `${model.name} · iris_wsgi`;
  at("title").textContent = model.name;
  const { kind } = model;
  state.columns = model.scores || model.values || model.labels;
  // Only this response has the label if it is not that of the highest probability.
  state.path = kind !== "classifier" ? "predict" : model.label === "graph" ? "predict/batch" : "predict/proba";
  const what = kind === "regressor" ? listed(state.columns, "conjunction", "values") : listed(model.labels, "disjunction", "classes");
  const more = { classifier: ", with its probability", scores: ", with scores, which are not probabilities", regressor: "" }[kind];
  at("lead").textContent = `Change the input. The model predicts ${what}${more}.`;
  state.fields = model.features.slice(0, MAX_FIELDS).map(field);
  if (model.features.length > MAX_FIELDS) state.fields.push(restField(model.features.slice(MAX_FIELDS)));
  at("features").classList.toggle("many", model.features.length > MANY_FEATURES);
  at("features").replaceChildren(...state.fields.map(one => one.node));
  const found = examples(metadata);
  state.samples = found.map(one => one[1]);
  at("examples").replaceChildren(...found.map(example));
  showModel(model);
  at("tool").hidden = at("about").hidden = false;
  if (state.training && state.training.rows.length && plotted().length > 1) showScatter();
  put(metadata.data_sample[0]);
}

function showModel(model) {
  const told = { Name: model.name, Version: model.version, Digest: make("code", {}, model.digest) };
  told[{ classifier: "Classes", scores: "Classes", regressor: "Values" }[model.kind]] = shortened(model.kind === "regressor" ? model.values : model.labels);
  const libraries = Object.entries(model.libraries || {});
  if (libraries.length) told["Made with"] = libraries.map(pair => pair.join(" ")).join(", ");
  told.Proof = model.proof.detail;
  at("model").replaceChildren(...Object.entries(told).flatMap(([name, what]) => [make("dt", {}, name), make("dd", {}, what)]));
}

function shortened(names) {
  const more = names.length > MAX_NAMES ? `, … (${names.length} in all)` : "";
  return names.slice(0, MAX_NAMES).join(", ") + more;
}

const listed = (names, type, many) => names.length > 6 ? `${type === "disjunction" ? "one of " : ""}${names.length} ${many}`
  : new Intl.ListFormat("en", { type }).format(names);

// The input

// Words begin with a capital. A short name may be a symbol.
const titled = name => (name.length < 4 ? name : name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " "));
const withUnit = feature => titled(feature.name) + (feature.unit ? ` (${feature.unit})` : "");

// Returns the training range from the metadata of the model or from the training rows, or null without either.
function rangeOf(feature, i) {
  if (feature.min !== null && feature.max !== null) return [feature.min, feature.max];
  const column = state.training ? state.training.rows.map(row => row[i]).filter(isPresent) : [];
  return column.length ? extent(column) : null;
}

const isNumber = feature => feature.type !== "string" && feature.type !== "bool";
const isPresent = value => typeof value === "number";
const extent = column => [column.reduce((a, b) => Math.min(a, b)), column.reduce((a, b) => Math.max(a, b))];

// One feature. `value` returns the value for the server, or the typed text if it is not a number. `put` sets the value.
const field = (feature, i) => (isNumber(feature) ? numberField : feature.type === "bool" ? boolField : wordField)(feature, i);

function parts(feature, i, input) {
  const hint = make("p", { class: "soft hint", id: `hint-${i}` }), fault = make("p", { class: "fault", id: `fault-${i}` });
  const node = make("div", { class: "feature" }, make("label", { for: `field-${i}` }, withUnit(feature)), input, fault, hint);
  function complain(detail) {
    fault.textContent = detail ? `This ${detail}.` : "";
    if (detail) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
    input.setAttribute("aria-describedby", detail ? `fault-${i} hint-${i}` : `hint-${i}`);
  }
  complain("");
  return { node, hint, complain };
}

const textInput = (i, attributes = {}) => make("input", { type: "text", id: `field-${i}`, autocomplete: "off", spellcheck: "false", ...attributes });

function numberField(feature, i) {
  const range = rangeOf(feature, i), words = range && `${shown(range[0])} to ${shown(range[1])}`;
  const text = textInput(i), { node, hint, complain } = parts(feature, i, text), maybe = feature.missing ? "may be empty" : "";
  // A keyboard for decimals has no minus sign on some phones.
  if (range && range[0] >= 0) text.inputMode = INTEGER.test(feature.type) ? "numeric" : "decimal";
  const slider = range && range[0] < range[1] ? sliderOf(feature, i, range) : null;
  if (slider) text.before(slider.node);

  function value() {
    const typed = text.value.trim(), number = Number(typed.replace(",", "."));
    return typed === "" ? null : Number.isFinite(number) ? number : typed;
  }
  function follow() {
    const now = value(), outside = isPresent(now) && range && (now < range[0] || now > range[1]);
    if (slider && isPresent(now)) slider.node.value = now;
    const told = !range ? "" : outside ? `outside the training range: ${words}` : `${words} in training`;
    hint.textContent = [told, maybe].filter(Boolean).join("; ");
    hint.classList.toggle("outside", Boolean(outside));
  }
  function put(number) {
    text.value = number === null ? "" : String(number);
    follow();
  }
  text.addEventListener("input", () => { follow(); soon(); });
  if (slider) slider.node.addEventListener("input", () => { put(Number(Number(slider.node.value).toFixed(slider.digits))); soon(); });
  return { node, value, put, complain };
}

function boolField(feature, i) {
  const input = make("select", { id: `field-${i}` }, ...["true", "false"].map(word => make("option", {}, word)));
  input.addEventListener("change", soon);
  return { ...parts(feature, i, input), value: () => input.value === "true", put: value => { input.value = String(Boolean(value)); } };
}

function wordField(feature, i) {
  const input = textInput(i, { class: "word" });
  input.addEventListener("input", soon);
  return { ...parts(feature, i, input), value: () => input.value, put: value => { input.value = value; } };
}

// The features after the first MAX_FIELDS, as one list of JSON. Invalid JSON is one invalid value.
function restField(features) {
  const input = make("textarea", { id: `field-${MAX_FIELDS}`, spellcheck: "false" });
  const name = `${features.length} more features, as a list of JSON: ${features[0].name} to ${features.at(-1).name}`;
  function value() {
    try {
      const found = JSON.parse(input.value);
      return Array.isArray(found) ? found : [input.value];
    } catch {
      return [input.value];
    }
  }
  input.addEventListener("input", soon);
  return { ...parts({ name }, MAX_FIELDS, input), value, put: rest => { input.value = JSON.stringify(rest); } };
}

function sliderOf(feature, i, [low, high]) {
  const power = Math.max(Math.floor(Math.log10((high - low) / 20)), INTEGER.test(feature.type) ? 0 : -20), step = 10 ** power, digits = Math.max(0, -power);
  const ends = { min: (Math.floor(low / step + 1e-9) * step).toFixed(digits), max: (Math.ceil(high / step - 1e-9) * step).toFixed(digits) };
  const name = `${withUnit(feature)}, slider`;
  const node = make("input", { type: "range", id: `slider-${i}`, step: step.toFixed(digits), "aria-label": name, ...ends });
  return { node, digits };
}

const shown = number => String(Number(number.toPrecision(4)));

function put(row) {
  state.fields.forEach((one, i) => one.put(i < MAX_FIELDS ? row[i] : row.slice(MAX_FIELDS)));
  predict();
}

// Returns a name, a row, and the class of the row, if known.
function examples(metadata) {
  const { labels, features } = state.model;
  if (features.length === 4 && labels.join() === Object.keys(FLOWERS).join()) return labels.map((name, i) => [name, FLOWERS[name], i]);
  if (!state.training || !state.training.labels.length) return [["Sample", metadata.data_sample[0]]];
  const { rows, classes } = state.training, of = i => rows.filter((_, j) => classes[j] === i);
  return labels.map((name, i) => [name, of(i)[of(i).length >> 1], i]).filter(one => one[1]).slice(0, MAX_EXAMPLES);
}

function example([name, row, i]) {
  const button = make("button", { type: "button" }, ...(i === undefined ? [] : [marker(i)]), name);
  button.addEventListener("click", () => put(row));
  return button;
}

// The prediction

function bar(name, i) {
  const isValue = state.model.kind === "regressor", known = isValue || i >= state.model.labels.length ? [] : [marker(i)];
  const label = make("span", { class: "name" }, ...known, make("span", {}, name));
  const track = state.model.kind === "classifier" ? [make("div", { class: `bar k${i % COLORS}` }, make("i"))] : [];
  return make("li", {}, label, make("span", { class: "percent" }, ""), ...track);
}

const percent = p => `${(100 * p).toFixed(2)} %`;
const measure = value => (state.model.kind === "classifier" ? percent(value) : String(Number(value.toPrecision(6))));

// Returns the number of the label, or -1 for a regressor, and the probabilities, scores, or values.
function answerOf(document) {
  const { kind, labels } = state.model;
  if (kind === "regressor") return { best: -1, values: document.values };
  if (kind === "scores") return { best: labels.indexOf(document.label), values: document.scores };
  if (document.labels) return { best: labels.indexOf(document.labels[0]), values: document.probabilities[0] };
  const values = document.prediction.map(pair => pair.probability);
  return { best: values.indexOf(Math.max(...values)), values };
}

// Shows the columns with the highest values in their order.
function showBars(answer) {
  const { columns } = state, wanted = [...columns.keys()];
  if (answer && state.model.kind !== "regressor") wanted.sort((a, b) => answer.values[b] - answer.values[a] || a - b);
  const top = wanted.slice(0, MAX_BARS).sort((a, b) => a - b), lines = [...at("bars").children];
  if (lines.length !== top.length || columns.length > MAX_BARS) at("bars").replaceChildren(...top.map(i => bar(columns[i], i)));
  for (const [k, line] of [...at("bars").children].entries()) {
    const value = answer && answer.values[top[k]], track = line.querySelector("i");
    if (track) track.style.width = `${100 * (value || 0)}%`;
    line.querySelector(".percent").textContent = answer ? measure(value) : "–";
    line.classList.toggle("best", Boolean(answer) && top[k] === answer.best);
  }
}

// Returns the result in words: as the heading, as the line below, and as a value.
function wordsOf({ best, values }) {
  const { kind, labels } = state.model, { columns } = state;
  if (kind === "regressor") return columns.length > 1 ? [columns.map((name, i) => `${name} ${measure(values[i])}`).slice(0, MAX_BARS).join(", "), "", ""] : [measure(values[0]), columns[0], ""];
  if (kind === "scores") return [labels[best], "The scores are not probabilities.", ""];
  return [labels[best], `with a probability of ${percent(values[best])}`, percent(values[best])];
}

// `answer` is that of answerOf(), or null.
function showAnswer(answer) {
  state.answer = answer;
  showBars(answer);
  const [name, below, value] = answer ? wordsOf(answer) : ["–", "no prediction for this input", ""];
  const mark = () => (answer && answer.best >= 0 ? [marker(answer.best)] : []);
  at("label").hidden = at("sure").hidden = state.model.kind === "regressor" && state.columns.length > 1;
  at("label").replaceChildren(...mark(), make("span", {}, name));
  at("brief").replaceChildren(...mark(), name, make("b", {}, value));
  at("sure").textContent = below;
  // A screen reader announces the final value of the slider, not each step.
  clearTimeout(state.speaking);
  const words = answer ? [name, value].filter(Boolean).join(", ") : "No prediction";
  state.speaking = setTimeout(() => { at("spoken").textContent = words; }, SPEAK_MS);
  showPoint();
}

// Shows each error at its field. Returns whether every error has a field.
function showFaults(faults) {
  const told = new Map();
  for (const { pointer, detail } of faults) {
    const found = /^#\/data\/0(?:\/(\d+))?$/.exec(pointer), i = found && found[1] ? Number(found[1]) : -1;
    // A row of another width comes from the field of JSON.
    if (found && i < 0 && state.fields.length > MAX_FIELDS) told.set(MAX_FIELDS, detail);
    else if (i >= MAX_FIELDS) told.set(MAX_FIELDS, `has a value for ${state.model.features[i].name} that ${detail}`);
    else told.set(i, detail);
  }
  state.fields.forEach((one, i) => one.complain(told.get(i)));
  return faults.length > 0 && !told.has(-1);
}

function showCurl() {
  // A single quote within single quotes, for a shell.
  const body = bodyOf(values()).replaceAll("'", "'\\''"), url = new URL(state.path, location.href).href;
  const place = url.includes("[") ? `'${url}'` : url;
  at("curl").textContent = `curl -s ${place}${state.token ? ` ${CURL_TOKEN}` : ""} -H 'Content-Type: application/json' -d '${body}'`;
  showRows();
}

async function copyFrom(pre, button) {
  try {
    await navigator.clipboard.writeText(pre.textContent);
  } catch {
    // Browsers have no clipboard for a page that another machine sent over plain HTTP.
    getSelection().selectAllChildren(pre);
    if (!document.execCommand("copy")) return;
  }
  button.textContent = at("spoken").textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

at("copy").addEventListener("click", () => copyFrom(at("curl"), at("copy")));

// The scatter plot

// Paths around 0, 0 within 1. Classes differ by shape and by color.
const SHAPES = [
  "M-1 0a1 1 0 1 0 2 0a1 1 0 1 0-2 0z", "M0-1.1 1.05.85H-1.05z", "M-.87-.87H.87V.87H-.87z",
  "M0-1.2 1.2 0 0 1.2-1.2 0z", "M0 1.1-1.05-.85H1.05z", "M-.38-1.1H.38V-.38H1.1V.38H.38V1.1H-.38V.38H-1.1V-.38H-.38z",
];
const shape = (i, x, y, size) => draw("path", { d: SHAPES[i % SHAPES.length], transform: `translate(${x} ${y}) scale(${size})` });

function marker(i) {
  const path = draw("path", { d: SHAPES[i % SHAPES.length], fill: "currentColor" });
  return draw("svg", { class: `marker k${i % COLORS}`, viewBox: "-1.2 -1.2 2.4 2.4", "aria-hidden": "true" }, path);
}

// Returns the numbers of the features that can be an axis.
const plotted = () => [...state.model.features.keys()].slice(0, MAX_FIELDS).filter(i => isNumber(state.model.features[i])
  && state.training.rows.some(row => isPresent(row[i])));

function showScatter() {
  const { features, labels } = state.model, { training } = state;
  if (!training.classes.length) training.classes = training.rows.map(() => 0);
  const { classes } = training, axes = plotted();
  const ordered = axes.map(i => [separation(i), i]).sort((a, b) => b[0] - a[0]).map(pair => pair[1]);
  for (const [id, chosen] of [["across", ordered[0]], ["up", ordered[1]]]) {
    at(id).replaceChildren(...axes.map(i => make("option", { value: i }, withUnit(features[i]))));
    at(id).value = chosen;
    at(id).onchange = plot;
  }
  const names = labels.length ? labels : ["training rows"];
  const counted = names.map((name, i) => [name, i, classes.filter(one => one === i).length]).filter(one => one[2]);
  const ring = draw("svg", { class: "marker", viewBox: "-1.2 -1.2 2.4 2.4", "aria-hidden": "true" }, draw("circle", { class: "ring", r: .9, "vector-effect": "non-scaling-stroke" }));
  const more = counted.length > MAX_BARS ? [make("li", {}, `${counted.length - MAX_BARS} more classes`)] : [];
  at("legend").replaceChildren(...counted.slice(0, MAX_BARS).map(([name, i, n]) => make("li", {}, marker(i), `${name} (${n})`)), ...more, make("li", {}, ring, "your input"));
  at("scatter").hidden = false;
  let width = 0;
  new ResizeObserver(() => { if (at("plot").clientWidth !== width) { width = at("plot").clientWidth; plot(); } }).observe(at("plot"));
}

const mean = column => column.reduce((a, b) => a + b, 0) / column.length;

// Returns the variance of a feature between the classes over the variance within. The plot starts with the two largest.
function separation(k) {
  const { rows, classes } = state.training, all = mean(rows.map(row => row[k]).filter(isPresent));
  let between = 0, within = 0;
  for (const i of new Set(classes)) {
    const column = rows.filter((_, j) => classes[j] === i).map(row => row[k]).filter(isPresent), middle = mean(column);
    if (!column.length) continue;
    between += column.length * (middle - all) ** 2;
    within += column.reduce((sum, value) => sum + (value - middle) ** 2, 0);
  }
  return between / (within || 1e-12);
}

function scaleOf(k, from, to) {
  let [low, high] = extent(state.training.rows.map(row => row[k]).filter(isPresent));
  const room = (high - low) * .05 || 1;
  low -= room; high += room;
  const raw = (high - low) / Math.max(4, Math.abs(to - from) / 110), power = 10 ** Math.floor(Math.log10(raw));
  const step = power * (raw / power > 7 ? 10 : raw / power > 3.5 ? 5 : raw / power > 1.5 ? 2 : 1);
  const ticks = [];
  for (let n = Math.ceil(low / step); n * step <= high; n++) ticks.push(Number((n * step).toPrecision(6)));
  const place = value => from + (to - from) * (Math.min(Math.max(value, low), high) - low) / (high - low);
  return { place, ticks, holds: value => value >= low && value <= high };
}

function plot() {
  const width = Math.max(at("plot").clientWidth, 240), height = Math.round(Math.min(Math.max(width * .6, 280), 440));
  const edge = { left: 44, right: width - 16, top: 30, bottom: height - 44 };
  const across = Number(at("across").value), up = Number(at("up").value), { features } = state.model;
  const y = scaleOf(up, edge.bottom, edge.top);
  // Leaves room for the longest number.
  edge.left = 20 + 8 * Math.max(2, ...y.ticks.map(tick => String(tick).length));
  const x = scaleOf(across, edge.left, edge.right);
  const grid = [], { rows, classes } = state.training;
  for (const tick of x.ticks) grid.push(
    draw("path", { class: "grid", d: `M${x.place(tick)} ${edge.top}V${edge.bottom}` }),
    draw("text", { x: x.place(tick), y: edge.bottom + 18, "text-anchor": "middle" }, String(tick)));
  for (const tick of y.ticks) grid.push(
    draw("path", { class: "grid", d: `M${edge.left} ${y.place(tick)}H${edge.right}` }),
    draw("text", { x: edge.left - 8, y: y.place(tick) + 4, "text-anchor": "end" }, String(tick)));
  grid.push(draw("text", { x: edge.right, y: height - 4, "text-anchor": "end" }, withUnit(features[across])));
  grid.push(draw("text", { x: edge.left, y: 14 }, withUnit(features[up])));
  const points = rows.map((row, j) => {
    if (!isPresent(row[across]) || !isPresent(row[up])) return "";
    const point = shape(classes[j], x.place(row[across]), y.place(row[up]), 4.5);
    point.setAttribute("class", `point k${classes[j] % COLORS}`);
    point.setAttribute("vector-effect", "non-scaling-stroke");
    return point;
  });
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" }, ...grid, ...points, draw("g", { id: "now" }));
  at("plot").replaceChildren(svg);
  Object.assign(state, { drawn: { svg, x, y, across, up, edge } });
  showPoint();
}

// Draws the current input, at the border of the plot if it is outside.
function showPoint() {
  if (!state.drawn) return;
  const { svg, x, y, across, up, edge } = state.drawn, { features } = state.model;
  const row = values(), there = isPresent(row[across]) && isPresent(row[up]);
  const words = `${state.training.rows.length} training rows by ${titled(features[across].name)} and ${titled(features[up].name)}.`;
  svg.setAttribute("aria-label", there ? `${words} Your input is at ${row[across]} and ${row[up]}.` : words);
  at("now").replaceChildren();
  if (!there) return;
  const left = x.place(row[across]), top = y.place(row[up]), best = state.answer ? Math.max(state.answer.best, 0) : -1;
  at("now").append(
    draw("path", { class: "cross", d: `M${left} ${edge.top}V${edge.bottom}M${edge.left} ${top}H${edge.right}` }),
    draw("circle", { class: "ring", cx: left, cy: top, r: 10 }));
  if (best < 0 || !x.holds(row[across]) || !y.holds(row[up])) return;
  const dot = shape(best, left, top, 5);
  dot.setAttribute("class", `now k${best % COLORS}`);
  at("now").append(dot);
}
