// Synchronous: sends three rows in the Open Inference Protocol, and prints their classes.
// Usage: node synchronous.mjs [URL]

const url = process.argv[2] ?? process.env.SERVER_URL ?? "http://127.0.0.1:8000";
const rows = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.1, 4.7, 1.5], [7.2, 3.6, 6.1, 2.5]];

async function call(method, path, body, headers = {}) {
  const json = body && { "Content-Type": "application/json" };
  const response = await fetch(url + path, { method, body: body && JSON.stringify(body), headers: { ...json, ...headers } });
  if (!response.ok) throw new Error(`${method} ${path} answers ${response.status}: ${await response.text()}`);
  return { document: await response.json(), headers: response.headers };
}

async function main() {
  const data = rows.flat();
  const inputs = [{ name: "features", datatype: "FP32", shape: [rows.length, 4], data }];
  const { document } = await call("POST", "/v2/models/iris_svc/infer", { inputs });
  const { label, probabilities } = Object.fromEntries(document.outputs.map((output) => [output.name, output]));
  const width = probabilities.shape[1];
  label.data.forEach((number, i) => {
    console.log(`[${rows[i]}] is of class ${number}, with probability ${probabilities.data[i * width + number].toFixed(4)}`);
  });
  if (label.data.join() !== "0,1,2") throw new Error(`expected the classes 0, 1, and 2, not ${label.data}`);
}

main().catch((error) => {
  console.error(`${url}: ${error.cause?.message ?? error.message}`);
  process.exitCode = 1;
});
