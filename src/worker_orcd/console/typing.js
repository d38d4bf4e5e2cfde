// A box whose text the model completes as you type: each change supersedes the job of the one before.

import { ms } from "./figures.js";
import { events } from "./sse.js";

const MAX_TOKENS = 24;
const KEPT_RECEIPTS = 20;

const drawn = () => crypto.getRandomValues(new Uint32Array(1))[0].toString(16).padStart(8, "0");

export class Typing {
  #key = `console-${drawn()}`;
  #newest = 0;
  #jobId = null;

  /** `parts`: the elements `text`, `completion`, `state` and `receipts`. `worker`: ask, stream, stop and explained. */
  constructor(parts, worker) {
    this.parts = parts;
    this.worker = worker;
    parts.text.addEventListener("input", () => this.#complete());
    parts.text.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.#stop();
    });
  }

  async #stop() {
    if (this.#jobId) await this.worker.stop({ job_id: this.#jobId });
  }

  async #complete() {
    const number = ++this.#newest;
    const prompt = this.parts.text.value;
    this.parts.completion.textContent = "";
    if (!prompt) {
      this.parts.state.textContent = "";
      return this.#stop();
    }
    const jobId = (this.#jobId = `typing-${drawn()}`);
    const show = (state) => number === this.#newest && (this.parts.state.textContent = state);
    show("waiting");
    try {
      const job = { job_id: jobId, supersedes: this.#key, prompt, template: "none", max_tokens: MAX_TOKENS, temperature: 0, progress: true };
      const response = await this.worker.stream("/execute", { method: "POST", body: JSON.stringify(job), signal: new AbortController().signal });
      for await (const { event, data } of events(response)) {
        const payload = JSON.parse(data);
        if (event === "progress") show(`prompt: ${payload.processed} of ${payload.prompt_tokens} tokens, ${payload.cached} of them kept from before`);
        if (event === "token" && number === this.#newest) this.parts.completion.append(payload.t);
        if (event === "end") show(`${payload.tokens_out} tokens`);
        if (event === "error") await this.#ended(jobId, payload, show);
      }
    } catch (error) {
      show(this.worker.explained(error));
    }
    if (this.#jobId === jobId) this.#jobId = null;
  }

  async #ended(jobId, error, show) {
    show(error.code === "CANCELLED" ? `cancelled (${error.reason})` : `${error.code}: ${error.message}`);
    if (error.reason !== "superseded") return;
    const { receipt } = await (await this.worker.ask(`/jobs/${encodeURIComponent(jobId)}`)).json();
    if (!receipt) return;
    const line = document.createElement("li");
    line.textContent =
      `${jobId} superseded in ${receipt.phase}, stopped after ${ms(receipt.stopped_ms)}; ${receipt.prompt_tokens} prompt tokens processed, ` +
      `${receipt.prompt_tokens_cached} of them from the cache; ${receipt.kv_cells_warm} KV cells kept for the next`;
    this.parts.receipts.prepend(line);
    while (this.parts.receipts.children.length > KEPT_RECEIPTS) this.parts.receipts.lastElementChild.remove();
  }
}
