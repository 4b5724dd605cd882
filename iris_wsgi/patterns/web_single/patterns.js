"use strict";

// The patterns, with the words of the tour. `needs` is the route without which a card has no form, and the time of `counted` is its
// latency. Servers of `roles` show the card in any case. `missing` says why a server of role all may not have the route.
const PATTERNS = [
  { name: "web single", when: "clients have a row and need its class, in plain JSON. Begin here.", build: single,
    needs: "post /predict", counted: ["POST /predict", "POST /predict/label", "POST /predict/proba"] },
  { name: "synchronous", when: "clients speak the protocol of Triton or KServe, and wait for the response.", build: synchronous,
    needs: "post /v2/models/{model}/infer", counted: ["POST /v2/models/{model}/infer", "POST /v1/models/{model}:predict"] },
  { name: "asynchronous", when: "the result may be late, but must not be lost in any failure.", build: asynchronous, roles: ["worker"],
    needs: "post /jobs", counted: ["POST /jobs"], figures: jobFigures,
    missing: "This process runs the jobs. Submit them to a server of role asynchronous." },
  { name: "batch", when: "many rows are in a file or a table, and no client waits for a single one.", build: batch,
    needs: "post /predict/batch", counted: ["POST /predict/batch"] },
  { name: "prep-pred", when: "preprocessing and prediction are scaled or released separately.", build: prepPred, roles: ["prep", "pred"],
    needs: "post /predict", counted: [], figures: halfFigures, forClassifiers: true },
  { name: "sync-async", when: "a good prediction is needed at once, and the best one as soon as possible.", build: hybrid,
    needs: "post /predict/hybrid", counted: ["POST /predict/hybrid"], figures: hybridFigures,
    missing: "the model folder has no matching fast model." },
  { name: "prediction cache", when: "the same rows are repeated, and the model is slow.", build: predictionCache,
    needs: "delete /cache", counted: ["POST /predict", "POST /predict/proba", "POST /predict/batch"], figures: cacheFigures,
    missing: "its cache is off, or its model cannot be cached." },
  { name: "data cache", when: "clients know an id, and its features are in a database.", build: dataCache,
    needs: "put /items/{id}", counted: ["GET /items/{id}", "GET /items/{id}/prediction", "PUT /items/{id}"], figures: itemFigures },
  { name: "horizontal microservice", when: "each class has its own model, released and scaled separately.", build: horizontal,
    roles: ["member"], needs: "post /ensemble/predict", counted: ["POST /ensemble/predict"], figures: memberFigures, forClassifiers: true,
    missing: "the model folder has no members." },
  { name: "edge AI", when: "the network is slow, expensive, or absent, or the data must not leave the device.", build: edge,
    needs: "get /edge/", counted: [], figures: edgeFigures, forClassifiers: true },
];
const REFRESH_MS = 5000, POLL_MS = 250, MAX_LINES = 6, MAX_SHOWN = 50, MAX_TEXT = 2000, UNFINISHED = ["queued", "running"];
const page = { cards: [], metrics: [], language: "curl", timer: 0 };

const has = route => {
  const [method, path] = route.split(" ");
  return Boolean(state.api.paths[path] && state.api.paths[path][method]);
};
const isRoleOf = pattern => (pattern.roles || []).includes(state.role);

async function showPatterns() {
  const all = state.role === "all";
  // A role shows the patterns that its routes serve.
  const wanted = PATTERNS.filter(one => all || isRoleOf(one) || (has(one.needs) && one.name !== "prep-pred"));
  page.cards = wanted.map(card);
  at("cards").replaceChildren(...page.cards.map(one => one.node));
  at("h-patterns").textContent = all ? "The ten patterns" : "Patterns of this role";
  at("jump").replaceChildren(...page.cards.map(one => make("a", { href: `#${one.id}` }, one.pattern.name)));
  at("jump").hidden = wanted.length < 2;
  at("patterns").hidden = !wanted.length;
  at("patterns").setAttribute("aria-busy", "true");
  await Promise.all(page.cards.map(fill));
  showRows();
  showFigures();
  at("patterns").removeAttribute("aria-busy");
}

function card(pattern) {
  const id = pattern.name.replaceAll(" ", "-"), form = make("form"), fault = make("p", { class: "fault", role: "alert" });
  const result = make("div", { class: "result", "aria-live": "polite" }), figures = make("dl", { class: "figures" });
  const one = { pattern, id, form, fault, result, figures, calls: null, rows: [], latest: 0, first: null, shown: "" };
  one.code = codeOf(one);
  one.node = make("article", { class: "card", id, tabindex: "-1", "aria-labelledby": `h-${id}` },
    make("h3", { id: `h-${id}` }, pattern.name), make("p", { class: "soft" }, `Use it when ${pattern.when}`),
    form, fault, result, one.code.node, figures);
  form.addEventListener("submit", event => { event.preventDefault(); if (one.first) act(one, one.first); });
  form.addEventListener("input", () => one.code.show());
  return one;
}

// Builds the form of a card, or says why there is none.
async function fill(one) {
  const { pattern } = one, served = has(pattern.needs), special = isRoleOf(pattern);
  const { kind } = state.model || { kind: "classifier" };
  try {
    if (pattern.forClassifiers && kind !== "classifier") return reject(one, `it is for classifiers with probabilities, and this model gives ${kind === "scores" ? "scores" : "values"}.`);
    if (!served && !special && pattern.build !== edge) return reject(one, pattern.missing || "this server does not have its routes.");
    await pattern.build(one);
    one.code.node.hidden = !one.calls;
  } catch (problem) {
    show(one, problem);
  }
}

function note(one, ...words) {
  one.form.append(make("p", { class: "note" }, ...words));
}

function reject(one, why) {
  one.pattern = { ...one.pattern, counted: [], figures: null };
  note(one, `Not available: ${why}`);
}

// Runs the action of a button, and shows its problem in the card.
async function act(one, action) {
  one.fault.textContent = "";
  one.node.setAttribute("aria-busy", "true");
  try {
    await action();
  } catch (problem) {
    show(one, problem);
  }
  one.node.removeAttribute("aria-busy");
  one.code.show();
  refresh();
}

function show(one, problem) {
  const more = (problem.errors || []).map(({ pointer, detail }) => ` ${placeOf(pointer)} ${detail}.`);
  one.fault.textContent = (problem.detail || String(problem)) + more.join("");
}

function placeOf(pointer) {
  const [, row, column] = /^#\/data\/(\d+)(?:\/(\d+))?$/.exec(pointer) || [];
  if (row === undefined) return pointer;
  const named = column === undefined ? "" : `, ${nameOf(Number(column))},`;
  return `Row ${Number(row) + 1}${named}`;
}

const nameOf = i => (state.model && state.model.features[i] ? state.model.features[i].name : `value ${i + 1}`);

// The parts of forms. The first button also acts when Enter is pressed.
function button(one, text, action) {
  const node = make("button", { type: one.first ? "button" : "submit" }, text);
  if (one.first) node.addEventListener("click", () => act(one, action));
  one.first ||= action;
  return node;
}

function input(one, name, text, value) {
  const id = `${name}-${one.id}`, node = make("input", { type: "text", id, autocomplete: "off", spellcheck: "false" });
  node.value = value;
  return { node, label: make("label", { for: id }, text), value: () => node.value.trim() };
}

// A row as JSON. It follows the input of the predictor until it is edited.
function rowInput(one, row, text = "Row, as JSON") {
  const field = input(one, "row", text, literal(row));
  const follows = state.model && text.startsWith("Row");
  if (follows) one.rows.push(field.node);
  field.node.addEventListener("input", () => { one.rows = []; });
  field.put = value => { field.node.value = literal(value); one.rows = []; };
  field.row = () => {
    try {
      const found = JSON.parse(field.value());
      if (Array.isArray(found)) return found;
    } catch { /* The text is not JSON. */ }
    throw { detail: "The row is not a list in JSON.", errors: [] };
  };
  return field;
}

function showRows() {
  const text = state.model && state.fields.length ? literal(values()) : "";
  for (const one of page.cards) {
    for (const node of one.rows) node.value = text;
    if (one.rows.length || one.pattern.build === prepPred) one.code.show();
  }
}

function lay(one, ...parts) {
  one.form.append(...parts.map(part => (part.label ? make("div", { class: "labeled" }, part.label, part.node) : part)));
}

const buttons = (...nodes) => make("div", { class: "row" }, ...nodes);

// Returns an example row: that of the predictor, that of the OpenAPI document, or one of the right length.
function sampleRow(route) {
  if (state.model) return state.fields.length ? values() : [];
  const [method, path] = route.split(" "), media = contentOf(state.api.paths[path][method]);
  const given = [media.example, ...Object.values(media.examples || {}).map(one => one.value)];
  const example = given.map(one => one && (one.data || one.instances)).find(Array.isArray);
  if (example && Array.isArray(example[0])) return example[0];
  const rows = resolved(rowsIn(media).items), kinds = rows.anyOf || [rows];
  const list = kinds.map(resolved).find(kind => kind.type === "array");
  const named = kinds.map(resolved).find(kind => kind.type === "object"), names = named ? Object.keys(named.properties || {}) : [];
  if (names.join() === "sepal_length,sepal_width,petal_length,petal_width") return FLOWERS.versicolor;
  return names.length ? names.map(name => zeroOf(resolved(named.properties[name]).type)) : new Array(list ? list.minItems : 1).fill(0);
}

const rowsIn = media => resolved((resolved(media.schema).properties || {}).data);
const maxRows = () => rowsIn(contentOf(state.api.paths["/predict/batch"].post)).maxItems || 1000;
const contentOf = operation => resolved(operation.requestBody).content["application/json"];
const zeroOf = type => ({ string: "", boolean: false })[[type].flat()[0]] ?? 0;

function resolved(schema) {
  if (!schema || !schema.$ref) return schema || {};
  return resolved(schema.$ref.slice(2).split("/").reduce((found, name) => found[name], state.api));
}

// Returns a value as JSON, or as Python.
function literal(value, words = { null: "null", true: "true", false: "false" }) {
  if (Array.isArray(value)) return `[${value.map(each => literal(each, words)).join(", ")}]`;
  if (value && typeof value === "object") return `{${Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${literal(each, words)}`).join(", ")}}`;
  return typeof value === "string" || typeof value === "number" ? JSON.stringify(value) : words[value];
}

// The same calls as code. A call has a path, and optionally a method, a body, and headers.

const methodOf = call => call.method || (call.body ? "POST" : "GET");
const urlOf = call => new URL(call.path, location.href).href;
const headersOf = call => ({ ...(call.body ? { "Content-Type": "application/json" } : {}), ...call.headers });
const send = call => ask(call.path, call.body && JSON.stringify(call.body), { method: methodOf(call), headers: call.headers });
const inShell = text => `'${text.replaceAll("'", "'\\''")}'`;

const LANGUAGES = {
  curl(calls) {
    return calls.map(call => [
      "curl -s", ["GET", "POST"].includes(methodOf(call)) ? "" : `-X ${methodOf(call)}`, inShell(urlOf(call)),
      ...Object.entries(headersOf(call)).map(pair => `-H '${pair.join(": ")}'`), state.token ? CURL_TOKEN : "",
      call.body ? `-d ${inShell(literal(call.body))}` : "",
    ].filter(Boolean).join(" ")).join("\n");
  },
  Python(calls) {
    const token = state.token ? ', "Authorization": "Bearer " + os.environ["IRIS_TOKEN"]' : "", python = { null: "None", true: "True", false: "False" };
    return `import json${state.token ? "\nimport os" : ""}\nfrom urllib.request import Request, urlopen\n${calls.map(call => `
request = Request(
    ${JSON.stringify(urlOf(call))},
    method=${JSON.stringify(methodOf(call))},
    headers={${literal(headersOf(call)).slice(1, -1)}${headersOf(call) && Object.keys(headersOf(call)).length ? token : token.slice(2)}},${call.body ? `
    data=json.dumps(${literal(call.body, python)}).encode(),` : ""}
)
with urlopen(request) as response:
    print(response.status, json.load(response))`).join("\n")}`;
  },
  JavaScript(calls) {
    const token = state.token ? { Authorization: "Bearer TOKEN" } : {};
    return calls.map((call, i) => `${i ? "" : "let "}response = await fetch(${JSON.stringify(urlOf(call))}, {
  method: ${JSON.stringify(methodOf(call))},
  headers: ${literal({ ...headersOf(call), ...token })},${call.body ? `
  body: JSON.stringify(${literal(call.body)}),` : ""}
});
console.log(response.status, await response.json());`).join("\n");
  },
};

function codeOf(one) {
  const pre = make("pre", { tabindex: "0", role: "group", "aria-label": `Code for ${one.pattern.name}` }), copy = make("button", { type: "button" }, "Copy");
  const chosen = Object.keys(LANGUAGES).map(name => {
    const node = make("button", { type: "button" }, name);
    node.addEventListener("click", () => { page.language = name; page.cards.forEach(other => other.code.show()); });
    return node;
  });
  copy.addEventListener("click", () => copyFrom(pre, copy));
  const group = make("div", { class: "row", role: "group", "aria-label": `Language of the code for ${one.pattern.name}` }, ...chosen);
  const node = make("details", { hidden: "" }, make("summary", {}, "The same call in curl, Python, and JavaScript"), group, pre, copy);
  function show() {
    if (!node.open) return;
    for (const choice of chosen) choice.setAttribute("aria-pressed", choice.textContent === page.language);
    try {
      pre.textContent = LANGUAGES[page.language](one.calls());
    } catch (problem) {
      pre.textContent = problem.detail || String(problem);
    }
  }
  node.addEventListener("toggle", show);
  return { node, show };
}

// Results

const latency = ms => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
const shownHeaders = ["Location", "Cache-Status", "X-Model-Digest"];

function showResponse(one, { document, status, headers, ms }) {
  const lines = shownHeaders.filter(name => headers.get(name)).map(name => `${name}: ${headers.get(name)}\n`).join("");
  const text = literal(document), more = text.length > MAX_TEXT ? " …" : "";
  one.result.replaceChildren(
    make("p", {}, make("b", {}, inWords(document)), make("span", { class: "soft" }, ` status ${status}, ${latency(ms)}`)),
    make("pre", { tabindex: "0", role: "group", "aria-label": `Response of ${one.pattern.name}` }, lines + text.slice(0, MAX_TEXT) + more));
}

// Returns the first row of a result as a label with its probability, or as values.
function inWords(found) {
  if (Array.isArray(found.prediction) && found.prediction[0].label !== undefined) {
    const best = found.prediction.reduce((a, b) => (b.probability > a.probability ? b : a));
    return `${best.label}, ${percent(best.probability)}`;
  }
  const lists = [found.probabilities, found.scores, found.values, found.prediction].filter(Array.isArray), label = found.label ?? (found.labels && found.labels[0]);
  const numbers = lists.length ? lists[0].flat() : [], i = found.classes && label !== undefined ? found.classes.indexOf(label) : -1;
  if (label !== undefined && label !== null) return found.probabilities ? `${label}, ${percent(i < 0 ? Math.max(...numbers) : numbers[i])}` : label;
  return numbers.every(isPresent) ? numbers.slice(0, MAX_BARS).map(value => String(Number(value.toPrecision(6)))).join(", ") : "";
}

function table(name, heads, rows) {
  const cells = (kind, row) => row.map(cell => make(kind, kind === "th" ? { scope: "col" } : {}, cell));
  const node = make("table", {}, make("thead", {}, make("tr", {}, ...cells("th", heads))), make("tbody", {}, ...rows.map(row => make("tr", {}, ...cells("td", row)))));
  return make("div", { class: "wide", tabindex: "0", role: "group", "aria-label": name }, node);
}

// A table of the last requests, for the caches.
function logger(one) {
  const lines = [];
  return (what, { document, headers, ms }) => {
    const status = headers.get("Cache-Status") || "", word = status.includes("; hit") ? "hit" : status.includes("fwd=method") || !status ? "–" : "miss";
    lines.unshift([what, make("b", { class: word }, word), latency(ms), inWords(document) || "", make("code", {}, status)]);
    one.result.replaceChildren(table(`Requests of ${one.pattern.name}`, ["Request", "Cache", "Latency", "Result", "Cache-Status"], lines.slice(0, MAX_LINES)));
  };
}

// Role all runs the jobs itself.
function noteWorker(one) {
  if (state.role !== "all") note(one, "A worker on the same store runs the jobs: ", make("code", {}, "python3 -m iris_wsgi worker"), ".");
}

// Follows a job until it is done, or until the card has a newer one.
async function follow(one, id, update) {
  const mine = ++one.latest;
  for (let pause = POLL_MS; ; pause = Math.min(1.3 * pause, REFRESH_MS)) {
    const { document } = await ask(`jobs/${id}`);
    if (mine !== one.latest) return;
    update(document);
    if (!UNFINISHED.includes(document.status)) return;
    await new Promise(resolve => setTimeout(resolve, pause));
    if (mine !== one.latest) return;
  }
}

// The cards

function single(one) {
  note(one, "Each change of the ", make("a", { href: "#tool" }, "input above"), " is a request. This one shows the whole response.");
  const field = rowInput(one, sampleRow(one.pattern.needs)), call = () => ({ path: state.path, body: { data: [field.row()] } });
  one.calls = () => [call()];
  lay(one, field, buttons(button(one, "Predict", async () => showResponse(one, await send(call())))));
}

async function infer(one, model, text) {
  const place = `v2/models/${encodeURIComponent(model)}`, { inputs } = (await ask(place)).document;
  const whole = state.model && state.model.name === model, width = inputs.map(widthOf).reduce((a, b) => a + b, 0);
  const field = rowInput(one, whole ? sampleRow() : exampleTensors(inputs, width), whole ? text : `Values of ${model}, as JSON`);
  const call = () => ({ path: `${place}/infer`, body: { inputs: tensors(inputs, field.row()) } });
  one.calls = () => [call()];
  lay(one, field, buttons(button(one, "Infer", async () => showResponse(one, await send(call())))));
}

const widthOf = ({ shape }) => (shape.length > 1 ? shape[1] : 1);

// Returns the values of the example in the OpenAPI document if they fit.
function exampleTensors(inputs, width) {
  const media = contentOf(state.api.paths["/v2/models/{model}/infer"].post), given = [media.example, ...Object.values(media.examples || {}).map(one => one.value)];
  const example = given.find(one => one && one.inputs), flat = example ? example.inputs.flatMap(one => one.data.flat(9)) : [];
  if (flat.length === width && example.inputs.every((one, i) => inputs[i] && one.name === inputs[i].name)) return flat;
  return inputs.flatMap(one => new Array(widthOf(one)).fill(zeroOf({ BYTES: "string", BOOL: "boolean" }[one.datatype])));
}

// Returns the tensors of one row. A graph has one input for all features, or one for each.
function tensors(inputs, row) {
  let start = 0;
  return inputs.map(one => {
    const width = widthOf(one), data = row.slice(start, start += width);
    return { name: one.name, datatype: one.datatype, shape: one.shape.length > 1 ? [1, width] : [1], data };
  });
}

async function synchronous(one) {
  const { models } = (await ask("v2/models")).document, own = state.model && state.model.name;
  await infer(one, models.includes(own) ? own : models[0], "Row, as JSON");
}

async function asynchronous(one) {
  if (!has("post /jobs")) return note(one, one.pattern.missing);
  const field = rowInput(one, sampleRow("post /jobs")), submit = () => ({ path: "jobs", body: { data: [field.row()] } });
  let id = "";
  const cancel = button({ ...one, first: true }, "Cancel the job", async () => { update((await send({ path: `jobs/${id}`, method: "DELETE" })).document); });
  function update(job) {
    const states = ["queued", "running", UNFINISHED.includes(job.status) ? "succeeded" : job.status], times = [job.created, job.started, job.finished];
    const began = Date.parse(job.created), reached = UNFINISHED.includes(job.status) ? states.indexOf(job.status) : 2;
    const steps = states.map((name, i) => make("li", i === reached ? { class: "now" } : i < reached ? { class: "past" } : {}, name,
      make("span", { class: "soft" }, i > reached || !times[i] ? "" : i ? `after ${Date.parse(times[i]) - began} ms` : job.created.slice(11, 19))));
    one.result.replaceChildren(make("ol", { class: "steps" }, ...steps),
      make("p", {}, make("b", {}, job.result ? inWords(job.result) : ""), make("span", { class: "soft" }, ` job ${id}`)));
    cancel.disabled = !UNFINISHED.includes(job.status);
  }
  one.calls = () => [submit(), ...(id ? [{ path: `jobs/${id}`, headers: { Prefer: "wait=10" } }] : [])];
  cancel.disabled = true;
  lay(one, field, buttons(button(one, "Submit a job", async () => {
    const { document } = await send(submit());
    id = document.id;
    update({ ...document, created: new Date().toISOString() });
    refresh();
    await follow(one, id, update);
  }), cancel));
  return noteWorker(one);
}

function prepPred(one) {
  if (state.role === "prep") {
    note(one, "This server scales the row, and asks a server of role pred for the prediction. ", make("a", { href: "#tool" }, "The form above"), " uses both.");
    one.calls = () => [{ path: "predict", body: { data: [values()] } }];
    return undefined;
  }
  return ask("v2/models").then(({ document: { models } }) => {
    const half = state.role === "pred" ? models[0] : models.find(name => name !== state.model.name);
    if (!half) return reject(one, "the model folder has no halves of its model in the folders prep and pred.");
    const command = `bin/serve --role prep --port 8001 --pred-url ${location.origin}`;
    note(one, `This server has the second half, ${half}, which takes scaled values. For the first half, start `, make("code", {}, command), ".");
    return infer(one, half);
  });
}

function hybrid(one) {
  const field = rowInput(one, sampleRow("post /predict/hybrid")), call = () => ({ path: "predict/hybrid", body: { data: [field.row()] } });
  one.calls = () => [call()];
  const heads = ["", "Model", "Result", "After"];
  lay(one, field, buttons(button(one, "Predict", async () => {
    const began = performance.now(), { document: { provisional, final }, ms } = await send(call());
    const first = provisional ? ["provisional", provisional.model.name, inWords(provisional), latency(ms)] : ["provisional", "", "the fast model failed", latency(ms)];
    const lines = (model, result, after) => one.result.replaceChildren(table("Provisional and final prediction", heads, [first, [make("b", {}, "final"), model, result, after]]));
    lines("", { confident: "not needed: the fast model is confident", unavailable: "the job queue is unavailable" }[final.status] || final.status, "");
    if (!final.id) return;
    await follow(one, final.id, job => lines(job.model ? job.model.name : "", job.result ? inWords(job.result) : job.status, job.result ? latency(performance.now() - began) : ""));
  })));
  noteWorker(one);
}

function predictionCache(one) {
  const field = rowInput(one, sampleRow("post /predict")), log = logger(one), call = () => ({ path: state.path, body: { data: [field.row()] } });
  one.calls = () => [call()];
  const again = async headers => log(headers ? "no-cache" : "predict", await send({ ...call(), headers }));
  lay(one, field, buttons(
    button(one, "Predict", () => again()),
    button(one, "Predict without the cache", () => again({ "Cache-Control": "no-cache" })),
    button(one, "Empty the cache", async () => log("empty", await send({ path: "cache", method: "DELETE" })))));
}

function dataCache(one) {
  const id = input(one, "id", "Id of the item", "0000"), field = rowInput(one, sampleRow("put /items/{id}"), "Features of the item, as JSON"), log = logger(one);
  const path = () => `items/${encodeURIComponent(id.value())}`;
  one.calls = () => [{ path: `${path()}/prediction` }, { path: path(), method: "PUT", body: { data: [field.row()] } }];
  lay(one, id, field, buttons(
    button(one, "Look up", async () => {
      const item = await send({ path: path() }).catch(problem => { throw problem.status === 404 ? { detail: `${problem.detail} Change writes it.` } : problem; });
      field.put(item.document.data[0]);
      log(`item, version ${item.document.version}`, item);
      log("prediction", await send({ path: `${path()}/prediction` }));
    }),
    button(one, "Change", async () => {
      const item = await send({ path: path(), method: "PUT", body: { data: [field.row()] } });
      log(`change to version ${item.document.version}`, item);
    })));
}

function horizontal(one) {
  if (!has("post /ensemble/predict")) return note(one, "This server is one member. A server of role gateway asks all members over v2, and combines their votes.");
  const field = rowInput(one, sampleRow("post /ensemble/predict")), call = () => ({ path: "ensemble/predict", body: { data: [field.row()] } });
  let members = {}, votes = {}, verdict = "";
  function update() {
    const names = [...new Set([...Object.keys(members), ...Object.keys(votes)])], lines = names.map(name => {
      const { up = true, why } = members[name] || {}, { probability, error } = votes[name] || {};
      const bar = make("i"), vote = probability === undefined ? (error ? `no vote: ${error}` : "–") : percent(probability);
      bar.style.width = `${100 * (probability || 0)}%`;
      return make("li", {}, make("span", { class: "name" }, make("b", { class: up ? "hit" : "miss" }, up ? "up" : "down"), make("span", {}, name, make("span", { class: "soft" }, why ? ` ${why.replace(`${name} at `, "at ")}` : ""))),
        make("span", {}, vote), make("div", { class: "bar k0" }, bar));
    });
    one.result.replaceChildren(make("p", {}, make("b", {}, verdict)), make("ul", { class: "bars" }, ...lines));
  }
  one.tick = async () => {
    try {
      members = (await ask("ensemble/health")).document.members;
      if (one.isBelowQuorum) one.fault.textContent = "";
      one.isBelowQuorum = false;
      update();
    } catch (problem) {
      one.isBelowQuorum = true;
      show(one, problem);
    }
  };
  one.calls = () => [call()];
  lay(one, field, buttons(button(one, "Vote", async () => {
    const { document, ms } = await send(call()), { label, probability } = document.prediction;
    votes = document.members;
    verdict = `${label === null ? "no class" : `${label}, ${percent(probability)}`}; ${document.status}, ${latency(ms)}`;
    update();
  })));
  return one.tick();
}

async function edge(one) {
  const row = state.model && state.fields.length ? values() : [], words = row.filter(value => value !== null).map(value => (typeof value === "string" ? inShell(value) : String(value)));
  if (!has("get /edge/")) {
    note(one, "This server has no bundle for browsers. Run ", make("code", {}, "bin/edge build"), ", and start ", make("code", {}, "bin/serve"), " again. Without a server, the command ",
      make("code", {}, ["bin/edge predict", ...words].join(" ")), " predicts offline.");
    return;
  }
  note(one, make("a", { href: "edge/" }, "Open the edge page"), ". It loads the model once, and then predicts in the browser, also without a network.");
  const { model } = (await ask("edge/manifest.json")).document;
  note(one, `Its bundle has ${model.name} ${model.version}.`, state.token ? " With a token, the page works only behind a proxy that adds the token." : "");
  one.calls = () => [{ path: "edge/manifest.json" }];
}

// The card of batch

function batch(one) {
  const features = state.model.features, area = make("textarea", { id: "csv", spellcheck: "false", rows: "5" }), file = make("input", { type: "file", id: "csv-file", accept: ".csv,text/csv" });
  area.value = csvOf([features.map(feature => feature.name), ...state.samples.slice(0, 3)]);
  const take = async given => { if (given) { area.value = await given.text(); act(one, score); } };
  area.addEventListener("dragover", event => event.preventDefault());
  area.addEventListener("drop", event => { if (event.dataTransfer.files.length) { event.preventDefault(); take(event.dataTransfer.files[0]); } });
  file.addEventListener("change", () => take(file.files[0]));
  const rows = () => rowsOf(area.value, features);
  const score = () => scoreAll(one, rows());
  one.calls = () => [{ path: "predict/batch", body: { data: rows().slice(0, 3) } }];
  lay(one, { label: make("label", { for: "csv" }, "CSV: paste it, or drop a file"), node: area }, { label: make("label", { for: "csv-file" }, "CSV file"), node: file },
    buttons(button(one, "Score", score)), make("p", { class: "note" }, "The command for large files and tables: ", make("code", {}, "bin/batch rows.csv predictions.csv")));
}

// Sends the rows in pieces, and shows the first predictions with a link to all of them.
async function scoreAll(one, rows) {
  const mine = ++one.latest, size = Math.max(1, Math.min(maxRows(), 1000, Math.floor(20000 / state.model.features.length))), results = [], began = performance.now();
  if (!rows.length) throw { detail: "The CSV has no rows.", errors: [] };
  for (let start = 0; start < rows.length; start += size) {
    const part = rows.slice(start, start + size);
    try {
      const { document } = await ask("predict/batch", JSON.stringify({ data: part }));
      const columns = document.probabilities || document.scores || document.values;
      part.forEach((_, i) => results.push([...(document.labels ? [document.labels[i]] : []), ...columns[i]]));
    } catch (problem) {
      const errors = (problem.errors || []).map(({ pointer, detail }) => ({ pointer: pointer.replace(/^#\/data\/(\d+)/, (_, i) => `#/data/${Number(i) + start}`), detail }));
      throw { ...problem, errors };
    }
    if (mine !== one.latest) return;
    one.result.textContent = `${results.length} of ${rows.length} rows`;
  }
  showScores(one, rows, results, performance.now() - began);
}

function showScores(one, rows, results, ms) {
  const { features, kind } = state.model, heads = [...(kind === "regressor" ? [] : ["label"]), ...state.columns], names = features.map(feature => feature.name);
  const blob = new Blob([csvOf([[...names, ...heads], ...rows.map((row, i) => [...row, ...results[i]])])], { type: "text/csv" });
  if (one.url) URL.revokeObjectURL(one.url);
  one.url = URL.createObjectURL(blob);
  const narrow = names.slice(0, MAX_BARS), few = heads.slice(0, MAX_BARS + 1), cell = value => (isPresent(value) ? String(Number(value.toPrecision(5))) : String(value ?? ""));
  const lines = rows.slice(0, MAX_SHOWN).map((row, i) => [...results[i].slice(0, MAX_BARS + 1), ...row.slice(0, MAX_BARS)].map(cell));
  one.result.replaceChildren(
    make("p", {}, make("b", {}, `${rows.length} ${rows.length === 1 ? "row" : "rows"}`), make("span", { class: "soft" }, ` in ${latency(ms)} `), make("a", { href: one.url, download: "predictions.csv" }, "Download predictions.csv")),
    table("Predictions", [...few, ...narrow], lines));
}

const csvCell = value => (/[",\r\n]|^\s|\s$/.test(String(value ?? "")) ? `"${String(value).replaceAll('"', '""')}"` : String(value ?? ""));
const csvOf = lines => `${lines.map(line => line.map(csvCell).join(",")).join("\n")}\n`;

// Returns the records of a CSV text (RFC 4180), without empty lines.
function parseCsv(text) {
  const records = [];
  let record = [], cell = "", quoted = false, i = 0;
  const end = () => { record.push(cell); cell = ""; };
  const close = () => { end(); if (record.length > 1 || record[0].trim() !== "") records.push(record); record = []; };
  for (const source = text.replace(/^\uFEFF/, ""); i < source.length; i++) {
    const letter = source[i];
    if (quoted && letter === '"' && source[i + 1] === '"') { cell += letter; i++; }
    else if (letter === '"' && (quoted || cell === "")) quoted = !quoted;
    else if (quoted) cell += letter;
    else if (letter === ",") end();
    else if (letter === "\n") close();
    else if (letter !== "\r") cell += letter;
  }
  close();
  return records;
}

// Returns the rows of a CSV text. With a header, the columns are found by name, and others are ignored.
function rowsOf(text, features) {
  const records = parseCsv(text), head = records.length ? records[0].map(name => name.trim()) : [], order = features.map(feature => head.indexOf(feature.name));
  if (order.includes(-1)) return records.map(record => record.map((cell, i) => valueOf(cell, features[i])));
  return records.slice(1).map(record => order.map((column, i) => valueOf(record[column] ?? "", features[i])));
}

function valueOf(cell, feature) {
  const text = cell.trim();
  if (text === "" && (!feature || feature.type !== "string" || feature.missing)) return null;
  if (feature && feature.type === "string") return cell;
  if (feature && feature.type === "bool") return { true: true, false: false }[text.toLowerCase()] ?? text;
  return Number.isFinite(Number(text)) ? Number(text) : text;
}

// Live figures of the server

// Reads the metrics, without buckets.
function parseMetrics(text) {
  return text.split("\n").flatMap(line => {
    const found = /^(\w+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!found || found[1].endsWith("_bucket")) return [];
    const labels = Object.fromEntries([...(found[2] || "").matchAll(/(\w+)="((?:\\.|[^"\\])*)"/g)].map(pair => [pair[1], pair[2]]));
    return [{ name: found[1], labels, value: Number(found[3]) }];
  });
}

function sum(name, labels = {}) {
  const fits = one => one.name === name && Object.entries(labels).every(([key, value]) => one.labels[key] === value);
  return page.metrics.filter(fits).reduce((total, one) => total + one.value, 0);
}

function jobFigures() {
  return [["queued", sum("jobs", { state: "queued" })], ["running", sum("jobs", { state: "running" })], ["succeeded", sum("jobs", { state: "succeeded" })], ["failed", sum("jobs", { state: "failed" })]];
}

function hybridFigures() {
  return [["final result agrees", sum("hybrid_agreements_total", { agrees: "true" })], ["differs", sum("hybrid_agreements_total", { agrees: "false" })]];
}

function cacheFigures() {
  return [["hits", sum("prediction_cache_rows_total", { result: "hit" })], ["misses", sum("prediction_cache_rows_total", { result: "run" })], ["entries", sum("prediction_cache_entries")]];
}

function itemFigures() {
  return [["hits", sum("item_lookups_total", { source: "hit" }) + sum("item_predictions_total", { source: "hit" })], ["database reads", sum("item_lookups_total", { source: "database" })], ["entries", sum("item_cache_entries")]];
}

function memberFigures() {
  return sum("remote_calls_total") ? [["calls", sum("remote_calls_total")], ["answered", sum("remote_calls_total", { outcome: "ok" })]] : [];
}

function edgeFigures() {
  return [["predictions reported by devices", sum("edge_predictions_total")]];
}


function halfFigures() {
  if (state.role === "prep") return [["calls", sum("remote_calls_total")], ["answered", sum("remote_calls_total", { outcome: "ok" })]];
  const halves = page.metrics.filter(one => one.name === "inference_rows_total" && one.labels.model !== (state.model && state.model.name));
  return halves.map(one => [`rows of ${one.labels.model}`, one.value]);
}

function showFigures() {
  for (const { pattern, figures } of page.cards) {
    figures.hidden = !page.metrics.length;
    const routes = pattern.counted.map(route => { const [method, path] = route.split(" "); return { method, route: path }; });
    const total = name => routes.map(labels => sum(name, labels)).reduce((a, b) => a + b, 0), timed = total("http_request_duration_seconds_count");
    const common = routes.length && state.role !== "worker" ? [["requests", total("http_requests_total")], ["mean latency", timed ? latency(1000 * total("http_request_duration_seconds_sum") / timed) : "–"]] : [];
    const told = [...common, ...(pattern.figures ? pattern.figures() : [])];
    figures.replaceChildren(...told.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(value)))));
  }
}

// Shows metrics and readiness, which require no token. A proxy may block both.
async function refresh() {
  clearTimeout(page.timer);
  page.timer = setTimeout(refresh, REFRESH_MS);
  if (document.hidden && state.api) return;
  await Promise.all([readMetrics(), readHealth()]);
  showFigures();
  await Promise.all(page.cards.map(one => one.tick && one.tick()));
}

async function readMetrics() {
  try {
    const answer = await fetch("metrics", { signal: AbortSignal.timeout(TIMEOUT_MS) });
    page.metrics = answer.ok ? parseMetrics(await answer.text()) : [];
  } catch {
    page.metrics = [];
  }
  const found = page.metrics.find(one => one.name === "iris_wsgi_info");
  if (found) showRole(found.labels);
  else if (!state.role) await ask("./").then(({ document: root }) => { if (root.role) showRole(root); }, () => {});
}

async function readHealth() {
  try {
    const ready = await fetch("readyz", { signal: AbortSignal.timeout(TIMEOUT_MS) });
    showHealth(ready.ok ? "ready" : `not ready: ${(await ready.json()).detail}`);
  } catch {
    showHealth("health unknown");
  }
}

function showRole({ role, version }) {
  state.role = role;
  at("role").textContent = `role ${role}`;
  at("version").textContent = `version ${version}`;
  at("role").hidden = at("version").hidden = false;
}

function showHealth(text) {
  at("health").textContent = text;
  at("health").className = text === "ready" ? "hit" : "miss";
}

start();
