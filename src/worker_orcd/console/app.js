import { EDGES, Window, histogram, marks, metric, ms, quantile, rate } from "./figures.js";
import { events } from "./sse.js";
import { Typing } from "./typing.js";

const $ = (id) => document.getElementById(id);
const LOOK_MS = 1000;
const ANSWER_MS = 5000;
const KEPT_LINES = 300;
const MAX_JOBS = 100;
const SHOWN_SEC = 120;

// Asking the worker.

class Refused extends Error {
  constructor(status, error) {
    super(error?.message ?? `status ${status}`);
    this.status = status;
    this.code = error?.code ?? "";
  }
}

/** An answer that is no refusal. It is waited for ANSWER_MS at most, unless there is a signal to end the waiting. */
async function ask(path, options = {}, send = fetch) {
  const key = sessionStorage.getItem("key");
  const headers = { ...(key ? { Authorization: `Bearer ${key}` } : {}), ...options.headers };
  const response = await send(path, { ...options, headers, cache: "no-store", signal: options.signal ?? AbortSignal.timeout(ANSWER_MS) });
  if (response.status === 401) askForKey(Boolean(key));
  if (!response.ok && !options.anyStatus) {
    const body = await response.json().catch(() => ({}));
    throw new Refused(response.status, body.error);
  }
  return response;
}

/**
 * A stream, on connections that nothing else waits for: over HTTP/1.1 a browser opens six to one host, for all tabs
 * together, and streams would keep cancels and looks waiting. Those without credentials are counted apart (the Fetch
 * standard's connection pools). A key is no such credential: it is sent by us.
 */
const stream = (path, options) => ask(path, options, apart);

async function apart(path, options) {
  const answer = await fetch(path, { ...options, credentials: "omit", redirect: "manual" });
  // A login in front of the worker, which wants the browser's credentials; 0 is a way to its page.
  const login = [0, 401, 403].includes(answer.status) && !answer.headers.has("X-Correlation-Id");
  return login ? fetch(path, options) : answer;
}

function explained(error) {
  if (error instanceof Refused) return error.code ? `${error.code}: ${error.message}` : error.message;
  return error.name === "TimeoutError" ? `the worker does not answer within ${ANSWER_MS / 1000} s` : "the worker cannot be reached";
}

function askForKey(wrong) {
  $("key-button").hidden = false;
  $("key-wrong").hidden = !wrong;
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

$("key-button").addEventListener("click", () => $("key-dialog").showModal());
$("key-dialog").addEventListener("close", () => {
  const key = $("key").value.trim();
  $("key").value = "";
  if (!key) return;
  sessionStorage.setItem("key", key);
  look();
  $("narration").replaceChildren();
  lastId = null;
  listen();
});

// Prompts.

const panes = new Set();

class Pane {
  #leave = null;
  #answered = false;

  constructor(prompt) {
    this.root = $("pane-template").content.firstElementChild.cloneNode(true);
    this.form = this.root.querySelector("form");
    this.output = this.root.querySelector(".output");
    this.receipt = this.root.querySelector(".receipt");
    this.state = this.root.querySelector(".state");
    this.jobId = null;
    if (prompt) this.form.prompt.value = prompt;
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    this.form.elements.stop.addEventListener("click", () => this.stop());
    this.form.elements.close.addEventListener("click", () => this.close());
    this.root.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.stop();
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.form.requestSubmit();
    });
    panes.add(this);
    $("pane-list").append(this.root);
  }

  #body() {
    const { prompt, max_tokens, temperature, seed, group, template } = this.form.elements;
    // What a field for numbers takes, and BigInt does not: 1e3.
    if (!/^\d*$/.test(seed.value)) throw new Refused(400, { code: "INVALID_REQUEST", message: `seed is ${seed.value}; it must be a whole number, in digits` });
    const body = { job_id: this.jobId, prompt: prompt.value, template: template.value };
    if (max_tokens.value) body.max_tokens = Number(max_tokens.value);
    if (temperature.value) body.temperature = Number(temperature.value);
    if (group.value) body.group = group.value;
    // A seed has 64 bits, more than a number of JavaScript's: it goes out as it was written.
    return JSON.stringify(body).replace(/}$/, seed.value ? `,"seed":${BigInt(seed.value)}}` : "}");
  }

  async run() {
    if (this.jobId) return;
    this.jobId = `console-${crypto.getRandomValues(new Uint32Array(1))[0].toString(16).padStart(8, "0")}`;
    this.output.textContent = "";
    this.receipt.replaceChildren();
    this.#running(true, "waiting");
    this.#leave = new AbortController();
    this.#answered = false;
    // The worker answers at once, also when the job waits there.
    const late = setTimeout(() => (this.state.textContent = "waiting for a connection: a browser opens six to one host"), LOOK_MS);
    const began = performance.now();
    let tokens = 0;
    let ended = false;
    try {
      const response = await stream("/execute", { method: "POST", body: this.#body(), signal: this.#leave.signal });
      this.#answered = true;
      clearTimeout(late);
      this.state.textContent = "waiting";
      for await (const { event, data } of events(response)) {
        const payload = JSON.parse(data);
        if (event === "started") this.state.textContent = `job ${payload.job_id}, seed ${/"seed":(\d+)/.exec(data)[1]}`;
        if (event === "token") {
          tokens += 1;
          this.#say(payload.t);
          if (tokens === 1) this.state.title = `first token after ${ms(performance.now() - began)}`;
        }
        if (event === "end") this.state.textContent = `${payload.tokens_out} tokens in ${ms(payload.decode_time_ms)} (${payload.stop_reason})`;
        if (event === "error") await this.#ended(payload);
        ended ||= event === "end" || event === "error";
      }
      if (!ended) this.#failed("the connection broke off; the worker stops a job whose reader is gone");
    } catch (error) {
      if (error.name === "AbortError") this.state.textContent = "stopped before the worker had answered";
      else this.#failed(explained(error));
    }
    clearTimeout(late);
    this.jobId = null;
    this.#running(false);
    look();
  }

  async stop() {
    if (!this.jobId) return;
    const jobId = this.jobId;
    this.form.elements.stop.disabled = true;
    this.state.textContent = "stopping";
    // It may still be in the browser, for longer than the worker remembers a cancel.
    if (!this.#answered) this.#leave.abort();
    const failed = await stopJob({ job_id: jobId });
    if (!failed || this.jobId !== jobId) return;
    this.form.elements.stop.disabled = false;
    this.#failed(`It was not stopped: ${failed}`, "still running");
  }

  close() {
    this.#leave?.abort();
    this.stop();
    panes.delete(this);
    this.root.remove();
    if (!panes.size) new Pane();
    [...panes].at(-1).form.elements.prompt.focus();
  }

  #say(text) {
    const follows = this.output.scrollTop + this.output.clientHeight >= this.output.scrollHeight - 8;
    this.output.append(text);
    if (follows) this.output.scrollTop = this.output.scrollHeight;
  }

  #running(now, state) {
    this.form.elements.run.disabled = now;
    this.form.elements.stop.disabled = !now;
    this.root.setAttribute("aria-busy", String(now));
    if (state) this.state.textContent = state;
  }

  #failed(message, state = "failed") {
    const line = document.createElement("p");
    line.className = "failed";
    line.textContent = message;
    this.receipt.replaceChildren(line);
    this.state.textContent = state;
  }

  async #ended(error) {
    if (error.code !== "CANCELLED") return this.#failed(`${error.code}: ${error.message}`);
    this.state.textContent = `cancelled (${error.reason})`;
    const record = await (await ask(`/jobs/${encodeURIComponent(this.jobId)}`)).json();
    if (record.receipt) this.receipt.replaceChildren(...timeline(record.receipt));
  }
}

/** A receipt as a line of text and a drawing. */
function timeline(receipt) {
  const line = document.createElement("p");
  const after = receipt.kv_cells_after ?? "unknown";
  line.textContent =
    `Stopped in ${receipt.phase} after ${ms(receipt.stopped_ms)}, freed after ${ms(receipt.freed_ms) || "?"}, terminal event after ${ms(receipt.terminal_ms)}. ` +
    `KV cells ${receipt.kv_cells_before} → ${after}, ${receipt.kv_cells_warm} kept for later jobs; ${receipt.prompt_tokens} prompt tokens processed, ${receipt.tokens_out} tokens out.`;
  const svg = svgElement("svg", { class: "timeline", viewBox: "0 0 400 74", role: "img", "aria-label": "Timeline of the stop" });
  const [left, width, axis] = [12, 328, 62];
  svg.append(svgElement("line", { class: "axis", x1: left, x2: left + width, y1: axis, y2: axis }));
  for (const { name, at, place, label } of marks(receipt)) {
    const [x, beside] = [left + place * width, left + label * width];
    const [title, value] = [14, 29].map((y) => svgElement("text", { x: beside - 6, y }));
    title.textContent = name;
    value.textContent = ms(at);
    const leader = svgElement("line", { class: `leader ${name}`, x1: beside, y1: 34, x2: x, y2: axis });
    svg.append(leader, svgElement("circle", { class: name, cx: x, cy: axis, r: 4 }), title, value);
  }
  return [line, svg];
}

function svgElement(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** Stop a job, or a group. Returns what went wrong, or null; what became of it shows in the table. */
async function stopJob(named) {
  try {
    await ask("/cancel", { method: "POST", body: JSON.stringify(named) });
    return null;
  } catch (error) {
    return explained(error);
  } finally {
    look();
  }
}

async function stopFromTable(named) {
  const failed = await stopJob(named);
  $("not-stopped").textContent = failed ? `${named.job_id ?? `group ${named.group}`} was not stopped: ${failed}` : "";
}

// The worker at a glance.

const history = { rate: new Window(SHOWN_SEC), kv: new Window(SHOWN_SEC), jobs: new Window(SHOWN_SEC) };
const plots = {};
let counted = null;
let looking = null;

function look() {
  clearTimeout(looking);
  looking = setTimeout(async () => {
    // One after the other: looks that take long must not take all connections either.
    await lookAtHealth().then(lookAtJobs).then(lookAtMetrics).catch(() => {});
    if (!document.hidden) draw();
    look();
  }, look.soon ? 0 : LOOK_MS);
  look.soon = false;
}

async function lookAtHealth() {
  let health;
  try {
    health = await (await ask("/health", { anyStatus: true })).json();
  } catch (error) {
    show("away", "the worker is away", "");
    throw error;
  }
  const about = health.model ? `${health.model} on ${health.device}${health.exact ? ", exact" : ""}` : "";
  show(health.status, health.status + (health.reason ? `: ${health.reason}` : ""), about);
  const loadHidden = health.jobs_running === null;
  $("running").textContent = health.jobs_running ?? "–";
  $("queued").textContent = health.jobs_queued ?? "–";
  $("kv").max = health.kv_cells_total || 1;
  $("kv").value = health.kv_cells_used ?? 0;
  $("kv-text").textContent = `${health.kv_cells_used ?? "–"} / ${health.kv_cells_total}`;
  const stored = health.prefix_store_bytes === null ? "" : `, ${Math.round(health.prefix_store_bytes / 2 ** 20)} MiB stored`;
  $("warm").textContent = health.kv_cells_cached === null ? "–" : `${health.kv_cells_cached} cells${stored}`;
  $("limited").hidden = !loadHidden && !metricsRefused();
  if (loadHidden) return;
  const now = Date.now() / 1000;
  history.kv.add(now, health.kv_cells_used);
  history.jobs.add(now, health.jobs_running, health.jobs_queued);
}

function show(status, text, about) {
  $("status").className = `badge ${status}`;
  if ($("status").textContent !== text) $("status").textContent = text;
  if (about) $("model").textContent = about;
}

let keyWithoutMetrics = null;
/** Whether the key in use may not read the metrics; then they are not asked for again. */
const metricsRefused = () => keyWithoutMetrics !== null && keyWithoutMetrics === sessionStorage.getItem("key");

async function lookAtMetrics() {
  if (metricsRefused()) return;
  let answer;
  try {
    answer = await ask("/metrics");
  } catch (error) {
    if (error.status === 403) {
      keyWithoutMetrics = sessionStorage.getItem("key");
      counted = null;
      $("rate").textContent = "–";
      $("limited").hidden = false;
    }
    throw error;
  }
  const now = { time: Date.now() / 1000, count: metric(await answer.text(), "worker_tokens_generated_total") };
  const perSecond = counted ? rate(counted, now) : 0;
  counted = now;
  $("rate").textContent = perSecond.toFixed(0);
  history.rate.add(now.time, perSecond);
}

async function lookAtJobs() {
  const { jobs } = await (await ask(`/jobs?limit=${MAX_JOBS}`)).json();
  const rows = new Map([...$("jobs").children].map((row) => [row.dataset.run, row]));
  $("no-jobs").hidden = jobs.length > 0;
  jobs.forEach((job, place) => {
    const run = runOf(job);
    const row = rows.get(run) ?? newRow(job);
    rows.delete(run);
    fill(row, job);
    // Moved only if it is elsewhere: a button that has the focus keeps it.
    if ($("jobs").children[place] !== row) $("jobs").insertBefore(row, $("jobs").children[place] ?? null);
  });
  rows.forEach((row) => row.remove());
  latencies = jobs.filter((job) => job.receipt).map((job) => job.receipt.stopped_ms);
}

let latencies = [];

/** One use of a job id. Incarnations alone are counted anew by each worker. */
const runOf = (job) => `${job.job_id} ${job.incarnation}`;

function newRow(job) {
  const row = document.createElement("tr");
  row.dataset.run = runOf(job);
  for (let n = 0; n < 9; n += 1) row.append(document.createElement("td"));
  for (const n of [4, 5, 6, 7]) row.children[n].className = "n";
  const stop = button("Stop", `Stop job ${job.job_id}`, () => stopFromTable({ job_id: job.job_id }));
  row.children[0].append(stop);
  if (job.group) row.children[8].append(button(job.group, `Stop all of group ${job.group}`, () => stopFromTable({ group: job.group })));
  return row;
}

/** An ended job has nothing to stop. The focus stays with the table. */
function withoutStop(row, job) {
  const focused = row.contains(document.activeElement);
  row.children[0].replaceChildren();
  row.children[8].textContent = job.group ?? "";
  if (focused) $("jobs").closest(".scroll").focus();
}

function button(text, label, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "stop";
  made.textContent = text;
  made.setAttribute("aria-label", label);
  made.title = label;
  made.addEventListener("click", act);
  return made;
}

function fill(row, job) {
  const live = job.ended_ms === null;
  const read = job.prompt_tokens === null ? "" : live ? `${job.prompt_tokens_processed}/${job.prompt_tokens}` : job.prompt_tokens;
  const cells = [job.job_id, job.state.replace("_", " "), job.phase, read, job.tokens_out, ms(job.receipt?.stopped_ms), ms(job.receipt?.freed_ms)];
  row.className = job.state;
  cells.forEach((value, n) => {
    if (row.children[n + 1].textContent !== String(value)) row.children[n + 1].textContent = value;
  });
  row.children[1].title = job.job_id;
  if (!live && row.querySelector("button")) withoutStop(row, job);
}

// Plots.

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function plot(id, series, more = {}) {
  const lately = {
    splits: (_, __, least, most) => [least, (least + most) / 2, most],
    values: (_, splits) => splits.map((at, n) => (n === 2 ? "now" : `−${Math.round(splits[2] - at)} s`)),
  };
  const axis = { stroke: () => colour("--soft"), grid: { stroke: () => colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
  return new uPlot(
    {
      width: $(id).clientWidth || 240,
      height: 120,
      legend: { show: false },
      cursor: { show: false },
      scales: { x: { range: () => [Date.now() / 1000 - SHOWN_SEC, Date.now() / 1000] }, y: { range: (_, __, most) => [0, Math.max(1, most * 1.1)] }, ...more.scales },
      axes: [{ ...axis, size: 24, ...lately, ...more.x }, { ...axis, size: 44 }],
      series: [{}, ...series.map((name) => ({ stroke: () => colour(name), width: 1.5, points: { show: false }, ...more.series }))],
    },
    [[], ...series.map(() => [])],
    $(id),
  );
}

function draw() {
  plots.rate.setData(history.rate.data);
  plots.kv.setData(history.kv.data);
  plots.jobs.setData(history.jobs.data);
  const counts = histogram(latencies);
  plots.latency.setData([counts.map((_, n) => n), counts]);
  const [half, most] = [quantile(latencies, 0.5), quantile(latencies, 0.99)];
  $("latency-text").textContent = latencies.length ? `(${latencies.length}; median ${ms(half)}, p99 ${ms(most)})` : "(none yet)";
}

function makePlots() {
  for (const old of Object.values(plots)) old.destroy();
  plots.rate = plot("plot-rate", ["--accent"]);
  plots.kv = plot("plot-kv", ["--accent"]);
  plots.jobs = plot("plot-jobs", ["--good", "--warn"]);
  const label = (n) => (n === EDGES.length ? "more" : EDGES[n] === undefined ? "" : EDGES[n] >= 1000 ? `${EDGES[n] / 1000}s` : `${EDGES[n]}`);
  plots.latency = plot("plot-latency", ["--stop"], {
    scales: { x: { time: false, range: () => [-0.7, EDGES.length + 0.7] } },
    x: { splits: () => EDGES.map((_, n) => n).concat(EDGES.length), values: (_, splits) => splits.map((n) => (n % 2 ? "" : label(n))), grid: { show: false } },
    series: { paths: uPlot.paths.bars({ size: [0.8, 40] }), fill: () => colour("--stop") },
  });
  draw();
}

// Narration.

let listening = null;
let lastId = null;

async function listen() {
  listening?.abort();
  if (document.hidden) return; // The streams that a browser opens are for those who look at them.
  const mine = (listening = new AbortController());
  for (let pause = 500; !mine.signal.aborted; pause = Math.min(pause * 2, 5000)) {
    try {
      const response = await stream("/narration", { signal: mine.signal, headers: lastId ? { "Last-Event-ID": lastId } : {} });
      pause = 500;
      for await (const { data, id } of events(response)) {
        narrate(JSON.parse(data));
        lastId = id;
      }
    } catch (error) {
      if (error instanceof Refused && error.status === 401) return; // Asked for; begins anew with a key.
    }
    await new Promise((done) => setTimeout(done, pause));
  }
}

document.addEventListener("visibilitychange", listen);

function narrate(entry) {
  const list = $("narration");
  const follows = list.scrollTop + list.clientHeight >= list.scrollHeight - 8;
  const line = document.createElement("li");
  const time = document.createElement("time");
  const text = document.createElement("span");
  time.dateTime = entry.time;
  time.textContent = new Date(entry.time).toLocaleTimeString([], { hour12: false });
  text.className = entry.level;
  text.textContent = entry.human;
  text.title = entry.correlation_id ? `correlation id ${entry.correlation_id}` : "";
  line.append(time, text);
  list.append(line);
  while (list.children.length > KEPT_LINES) list.firstElementChild.remove();
  if (follows) list.scrollTop = list.scrollHeight;
}

// Light and dark, and the beginning.

const dark = matchMedia("(prefers-color-scheme: dark)");
$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
  root.dataset.theme = isDark ? "light" : "dark";
  makePlots();
});
dark.addEventListener("change", makePlots);
let resized = null;
addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(makePlots, 150);
});
$("add").addEventListener("click", () => new Pane([...panes].at(-1)?.form.elements.prompt.value).form.elements.prompt.focus());

new Pane();
new Typing(
  { text: $("typing"), completion: $("completion"), state: $("typing-state"), receipts: $("superseded") },
  { ask, stream, stop: stopJob, explained },
);
makePlots();
look.soon = true;
look();
listen();
