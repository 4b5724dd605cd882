// Web single: sends one row, and prints the probability of each class.
// Usage: node web_single.mjs [URL]

const url = process.argv[2] ?? process.env.SERVER_URL ?? "http://127.0.0.1:8000";
// Sepal length, sepal width, petal length, and petal width, in centimeters.
const row = [5.1, 3.5, 1.4, 0.2];

async function call(method, path, body, headers = {}) {
  const json = body && { "Content-Type": "application/json" };
  const response = await fetch(url + path, { method, body: body && JSON.stringify(body), headers: { ...json, ...headers } });
  if (!response.ok) throw new Error(`${method} ${path} answers ${response.status}: ${await response.text()}`);
  return { document: await response.json(), headers: response.headers };
}

async function main() {
  const { document } = await call("POST", "/predict/proba", { data: [row] });
  for (const { label, probability } of document.prediction) console.log(label.padEnd(12) + probability.toFixed(4));
  const best = document.prediction.reduce((a, b) => (b.probability > a.probability ? b : a));
  console.log(`This flower is an Iris ${best.label}.`);
  if (best.label !== "setosa") throw new Error(`expected setosa, not ${best.label}`);
}

main().catch((error) => {
  console.error(`${url}: ${error.cause?.message ?? error.message}`);
  process.exitCode = 1;
});
