// Asynchronous: submits a job, and waits for its result.
// Usage: node asynchronous.mjs [URL]

const url = process.argv[2] ?? process.env.SERVER_URL ?? "http://127.0.0.1:8000";
const rows = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.1, 4.7, 1.5], [7.2, 3.6, 6.1, 2.5]];

async function call(method, path, body, headers = {}) {
  const json = body && { "Content-Type": "application/json" };
  const response = await fetch(url + path, { method, body: body && JSON.stringify(body), headers: { ...json, ...headers } });
  if (!response.ok) throw new Error(`${method} ${path} answers ${response.status}: ${await response.text()}`);
  return { document: await response.json(), headers: response.headers };
}

async function main() {
  // A client that repeats the request with the same key gets the same job, and not a second one.
  let { document: job } = await call("POST", "/jobs", { data: rows }, { "Idempotency-Key": crypto.randomUUID() });
  console.log(`${job.id} is ${job.status}`);
  while (["queued", "running"].includes(job.status)) {
    // The server responds when the job has finished, or after ten seconds.
    job = (await call("GET", `/jobs/${job.id}`, undefined, { Prefer: "wait=10" })).document;
    console.log(`${job.id} is ${job.status}`);
  }
  if (job.status !== "succeeded") throw new Error(`the job has not succeeded: ${JSON.stringify(job)}`);
  console.log("labels:", job.result.labels.join(" "));
  if (job.result.labels.join() !== "setosa,versicolor,virginica") throw new Error("expected setosa, versicolor, and virginica");
}

main().catch((error) => {
  console.error(`${url}: ${error.cause?.message ?? error.message}`);
  process.exitCode = 1;
});
