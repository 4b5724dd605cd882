// Horizontal microservice: asks one model per class, and prints the vote of each.
// Usage: node horizontal.mjs [URL]

const url = process.argv[2] ?? process.env.SERVER_URL ?? "http://127.0.0.1:8000";

async function call(method, path, body, headers = {}) {
  const json = body && { "Content-Type": "application/json" };
  const response = await fetch(url + path, { method, body: body && JSON.stringify(body), headers: { ...json, ...headers } });
  if (!response.ok) throw new Error(`${method} ${path} answers ${response.status}: ${await response.text()}`);
  return { document: await response.json(), headers: response.headers };
}

async function main() {
  const { members } = (await call("GET", "/ensemble/health")).document;
  const down = Object.keys(members).filter((name) => !members[name].up);
  console.log(`${Object.keys(members).length} members, down: ${down.join(", ") || "none"}`);
  const { document } = await call("POST", "/ensemble/predict", { data: [[6.7, 3.1, 4.7, 1.5]] });
  for (const [name, vote] of Object.entries(document.members)) {
    // A member that is down has an error, and the others decide.
    console.log(name.padEnd(12) + (vote.probability?.toFixed(4) ?? vote.error));
  }
  const { label } = document.prediction;
  console.log(`The members decide: ${label} (${document.status}).`);
  if (label !== "versicolor") throw new Error(`expected versicolor, not ${label}`);
}

main().catch((error) => {
  console.error(`${url}: ${error.cause?.message ?? error.message}`);
  process.exitCode = 1;
});
