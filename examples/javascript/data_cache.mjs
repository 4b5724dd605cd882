// Data cache: stores the features of an item, and asks for its prediction by its id.
// Usage: node data_cache.mjs [URL]

const url = process.argv[2] ?? process.env.SERVER_URL ?? "http://127.0.0.1:8000";
const item = "/items/javascript-example";

async function call(method, path, body, headers = {}) {
  const json = body && { "Content-Type": "application/json" };
  const response = await fetch(url + path, { method, body: body && JSON.stringify(body), headers: { ...json, ...headers } });
  if (!response.ok) throw new Error(`${method} ${path} answers ${response.status}: ${await response.text()}`);
  return { document: await response.json(), headers: response.headers };
}

async function main() {
  for (const [row, expected] of [[[5.1, 3.5, 1.4, 0.2], "setosa"], [[7.2, 3.6, 6.1, 2.5], "virginica"]]) {
    const { version } = (await call("PUT", item, { data: [row] })).document;
    await predictUntilHit(version, expected);
  }
}

// Each process of the server has its own memory. So the prediction is requested until a process has it in memory.
async function predictUntilHit(version, expected) {
  for (let i = 0; i < 50; i++) {
    const { document, headers } = await call("GET", `${item}/prediction`);
    const status = headers.get("Cache-Status") ?? "none";
    console.log(`version ${version} is ${document.label}, Cache-Status: ${status}`);
    if (document.label !== expected) throw new Error(`expected ${expected}, not ${document.label}`);
    if (status.includes("; hit")) return;
  }
  throw new Error("expected a response from the cache");
}

main().catch((error) => {
  console.error(`${url}: ${error.cause?.message ?? error.message}`);
  process.exitCode = 1;
});
