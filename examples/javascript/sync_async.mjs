// Sync-async: gets a provisional label from the fast model at once, and the final one from a job of the full model.
// Usage: node sync_async.mjs [URL]

const url = process.argv[2] ?? process.env.SERVER_URL ?? "http://127.0.0.1:8000";
// The two models disagree about this flower, which is an Iris virginica.
const row = [4.9, 2.5, 4.5, 1.7];

async function call(method, path, body, headers = {}) {
  const json = body && { "Content-Type": "application/json" };
  const response = await fetch(url + path, { method, body: body && JSON.stringify(body), headers: { ...json, ...headers } });
  if (!response.ok) throw new Error(`${method} ${path} answers ${response.status}: ${await response.text()}`);
  return { document: await response.json(), headers: response.headers };
}

async function main() {
  const { document } = await call("POST", "/predict/hybrid", { data: [row] });
  console.log(`provisional: ${document.provisional.label} (${document.provisional.model.name})`);
  let job = document.final;
  // With IRIS_ESCALATE_BELOW, a confident provisional label is already final, and there is no job.
  if (job.status === "confident") return;
  while (["queued", "running"].includes(job.status)) {
    // The server responds when the job has finished, or after ten seconds.
    job = (await call("GET", `/jobs/${job.id}`, undefined, { Prefer: "wait=10" })).document;
  }
  if (job.status !== "succeeded") throw new Error(`the job has not succeeded: ${JSON.stringify(job)}`);
  const [label] = job.result.labels;
  console.log(`final:       ${label} (${job.model.name})`);
  if (label !== "virginica") throw new Error(`expected virginica, not ${label}`);
}

main().catch((error) => {
  console.error(`${url}: ${error.cause?.message ?? error.message}`);
  process.exitCode = 1;
});
