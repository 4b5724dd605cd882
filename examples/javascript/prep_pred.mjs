// Prep-pred: starts a second server that scales the rows, and leaves the prediction to the first one.
// Usage: node prep_pred.mjs [URL]
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

const url = process.argv[2] ?? process.env.SERVER_URL ?? "http://127.0.0.1:8000";
const serve = new URL("../../bin/serve", import.meta.url);
const readyMilliseconds = 30_000;

async function call(method, path, body, server = url) {
  const headers = body && { "Content-Type": "application/json" };
  const response = await fetch(server + path, { method, headers, body: body && JSON.stringify(body) });
  if (!response.ok) throw new Error(`${method} ${path} answers ${response.status}: ${await response.text()}`);
  return response.json();
}

// Returns the URL of the server, from its log of JSON lines.
async function addressOf(prep) {
  let last = "";
  for await (const line of createInterface(prep.stderr)) {
    const event = line.startsWith("{") ? JSON.parse(line) : {};
    if (event.port) return `http://127.0.0.1:${event.port}`;
    last = line;
  }
  throw new Error(`the server of role prep has not started: ${last}`);
}

async function predict(prepUrl) {
  const end = performance.now() + readyMilliseconds;
  while (!(await fetch(`${prepUrl}/readyz`)).ok) {
    if (performance.now() > end) throw new Error("the server of role prep is not ready");
    await sleep(100);
  }
  return (await call("POST", "/predict/label", { data: [[7.2, 3.6, 6.1, 2.5]] }, prepUrl)).prediction;
}

async function main() {
  await call("GET", "/readyz");
  const words = ["--role", "prep", "--port", "0", "--workers", "1", "--pred-url", url];
  const prep = spawn(fileURLToPath(serve), words, { stdio: ["ignore", "ignore", "pipe"] });
  try {
    const prepUrl = await addressOf(prep);
    const label = await predict(prepUrl);
    console.log(`${prepUrl} has scaled the row, and ${url} has predicted ${label}.`);
    if (label !== "virginica") throw new Error(`expected virginica, not ${label}`);
  } finally {
    prep.kill();
  }
}

main().catch((error) => {
  console.error(`${url}: ${error.cause?.message ?? error.message}`);
  process.exitCode = 1;
});
