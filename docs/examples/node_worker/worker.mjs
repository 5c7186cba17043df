// Works off raw jobs of one queue over HTTP, with nothing but Node 18 or later.
//
//   JOBS_URL=http://127.0.0.1:8000 JOBS_TOKEN=secret node worker.mjs QUEUE
//
// It leases no more jobs than it has free slots, sends a heartbeat every third of the
// lease, and stops working on a job whose lease is lost or whose cancel is requested.
// SIGTERM and Ctrl-C let running jobs end, for 10 s; what is left is handed back.

import { setTimeout as sleep } from "node:timers/promises";

const URL_OF_JOBS = process.env.JOBS_URL ?? "http://127.0.0.1:8000";
const TOKEN = process.env.JOBS_TOKEN;
const QUEUE = process.argv[2] ?? "default";
const SLOTS = Number(process.env.JOBS_SLOTS ?? 4);
const LEASE_MS = Number(process.env.JOBS_LEASE_MS ?? 30_000);
const POLL_MS = 500;
const GRACE_MS = Number(process.env.JOBS_GRACE_MS ?? 10_000);

// The work itself: what it returns is the job's result, what it throws its failure.
async function handle(job, { signal, checkpoint }) {
  const { text, wait_ms = 0 } = job.payload;
  if (typeof text !== "string") throw new Error("the payload has no text");
  if (!job.state.seen) await checkpoint({ seen: true });
  await sleep(wait_ms, undefined, { signal });
  return { upper: text.toUpperCase() };
}

class Refused extends Error {
  constructor(status, detail) {
    super(`${status}: ${detail}`);
    this.status = status;
  }
}

async function post(path, body, retries = 5) {
  const headers = { "Content-Type": "application/json" };
  if (TOKEN) headers.Authorization = `Bearer ${TOKEN}`;
  for (let tried = 1; ; tried++) {
    let answer;
    try {
      answer = await fetch(URL_OF_JOBS + path, {
        method: "POST",
        headers,
        body: JSON.stringify(body),
        signal: AbortSignal.timeout(10_000),
      });
      if (answer.ok) return await answer.json();
    } catch (error) {
      if (tried > retries) throw error; // the service is away
    }
    const again = !answer || answer.status === 429 || answer.status >= 500;
    if (answer && (!again || tried > retries)) {
      const { detail } = await answer.json().catch(() => ({ detail: "no answer" }));
      throw new Refused(answer.status, detail);
    }
    const wait = Number(answer?.headers.get("Retry-After") ?? 0) * 1_000;
    await sleep(Math.max(wait, 100 * 2 ** tried * (0.5 + Math.random())));
  }
}

const running = new Map(); // job id -> { done, abort, interrupt }
const stopping = new AbortController();
let interrupted = false;

async function run(job) {
  const path = `/v1/jobs/${job.id}`;
  const { token } = job;
  const abort = new AbortController();
  let ended = false;
  const held = (answer) => {
    if (answer.cancel_requested) abort.abort(new Error("cancelled on request"));
  };
  const lost = (error) => {
    if (error.status === 409 || error.status === 404) abort.abort(error);
  };
  const beat = setInterval(() => {
    const body = { token, extend_ms: LEASE_MS };
    post(`${path}/heartbeat`, body, 0).then(held, (error) => ended || lost(error));
  }, LEASE_MS / 3);
  const checkpoint = async (state) =>
    held(await post(`${path}/checkpoint`, { token, state, extend_ms: LEASE_MS }));
  running.get(job.id).abort = abort;

  let verb, body;
  try {
    const result = await handle(job, { signal: abort.signal, checkpoint });
    [verb, body] = ["ack", { token, result }];
  } catch (error) {
    const reason = abort.signal.aborted ? abort.signal.reason : error;
    [verb, body] = ["fail", { token, reason: String(reason?.message ?? reason) }];
    if (interrupted) [verb, body] = ["release", { token }];
    if (reason?.status === 409) return console.log(`lost ${job.id}`);
  } finally {
    ended = true;
    clearInterval(beat);
  }
  try {
    const { state } = await post(`${path}/${verb}`, body);
    console.log(`${verb} ${job.id}: ${state}`);
  } catch (error) {
    // Somebody else has the job by now, or will get it when the lease ends.
    console.log(error.status === 409 ? `lost ${job.id}` : `${verb} ${job.id}: ${error}`);
  }
}

async function main() {
  for (const name of ["SIGTERM", "SIGINT"]) process.once(name, () => stopping.abort());
  console.log(`working on ${QUEUE}`);
  while (!stopping.signal.aborted) {
    let jobs = [];
    const limit = SLOTS - running.size;
    if (limit > 0) {
      try {
        const body = { queue: QUEUE, limit, lease_ms: LEASE_MS };
        ({ jobs } = await post("/v1/lease", body, 0));
      } catch (error) {
        console.log(`no lease: ${error.message}`);
        if (error.status >= 400 && error.status < 429) process.exit(1);
      }
    }
    for (const job of jobs) {
      console.log(`leased ${job.id}: attempt ${job.attempt}`);
      running.set(job.id, {});
      const done = run(job).finally(() => running.delete(job.id));
      Object.assign(running.get(job.id) ?? {}, { done });
    }
    const ends = [...running.values()].map((one) => one.done);
    if (limit > jobs.length || !ends.length) {
      const pause = POLL_MS * (0.5 + Math.random());
      ends.push(sleep(pause, undefined, { signal: stopping.signal }).catch(() => {}));
    }
    await Promise.race(ends);
  }
  const drained = Promise.all([...running.values()].map((one) => one.done));
  await Promise.race([drained, sleep(GRACE_MS, undefined, { ref: false })]);
  interrupted = true;
  for (const one of running.values()) one.abort?.abort(new Error("the worker stops"));
  await drained;
  process.exit(0);
}

await main();
