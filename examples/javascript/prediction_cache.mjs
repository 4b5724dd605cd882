// Prediction cache: sends the same row again, until the response comes from the cache.
// Usage: node prediction_cache.mjs [URL]

const url = process.argv[2] ?? process.env.SERVER_URL ?? "http://127.0.0.1:8000";

async function call(method, path, body, headers = {}) {
  const json = body && { "Content-Type": "application/json" };
  const response = await fetch(url + path, { method, body: body && JSON.stringify(body), headers: { ...json, ...headers } });
  if (!response.ok) throw new Error(`${method} ${path} answers ${response.status}: ${await response.text()}`);
  return { document: await response.json(), headers: response.headers };
}

async function main() {
  // A new flower each time, so that the first request is a miss.
  const row = [5.1, 3.5, 1.4, Number((0.1 + 0.2 * Math.random()).toFixed(6))];
  // Each process of the server has its own cache, unless Redis shares one. So the row is sent until a process knows it.
  for (let i = 0; i < 50; i++) {
    const start = performance.now();
    const { document, headers } = await call("POST", "/predict/label", { data: [row] });
    const status = headers.get("Cache-Status") ?? "none";
    console.log(`${document.prediction} in ${(performance.now() - start).toFixed(1)} ms, Cache-Status: ${status}`);
    if (document.prediction !== "setosa") throw new Error(`expected setosa, not ${document.prediction}`);
    if (status.includes("; hit")) return;
  }
  throw new Error("expected a response from the cache");
}

main().catch((error) => {
  console.error(`${url}: ${error.cause?.message ?? error.message}`);
  process.exitCode = 1;
});
