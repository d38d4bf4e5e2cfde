// OpenAI's package for Node against a worker. Called by test_others.py: node check.mjs BASE_URL; prints one JSON object.
import OpenAI from "openai";

const base = process.argv[2];
const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: "none", maxRetries: 2 });
const model = "scripted";
const user = (content) => [{ role: "user", content }];
const says = (text) => JSON.stringify({ text, token_ms: 1 });
const slow = JSON.stringify({ token_ms: 20 });
const post = (path, body) => fetch(base + path, { method: "POST", body: JSON.stringify(body) });
const seen = {};

seen.models = (await client.models.list()).data.map((m) => m.id);
seen.whole = (await client.chat.completions.create({ model, messages: user(says("Hello 👋")) })).choices[0].message.content;

let text = "";
for await (const chunk of await client.chat.completions.create({ model, messages: user(says("abc")), stream: true })) {
  text += chunk.choices[0]?.delta?.content ?? "";
}
seen.streamed = text;

// Breaking out of the loop.
const broken = await client.chat.completions
  .create({ model, messages: user(slow), stream: true }, { headers: { "X-Job-Id": "node-broken" } });
let count = 0;
for await (const _ of broken) if (++count === 3) break;

// AbortController, while streaming and while waiting for a whole answer.
for (const [id, stream] of [["node-aborted", true], ["node-aborted-whole", false]]) {
  const controller = new AbortController();
  const asked = client.chat.completions.create(
    { model, messages: user(slow), stream },
    { signal: controller.signal, headers: { "X-Job-Id": id } },
  );
  setTimeout(() => controller.abort(), 300);
  try {
    for await (const _ of await asked);
    seen[id] = "ended";
  } catch (error) {
    seen[id] = error.constructor.name;
  }
}

// Cancelled by id from elsewhere.
const elsewhere = await client.chat.completions
  .create({ model, messages: user(slow), stream: true }, { headers: { "X-Job-Id": "node-elsewhere" } });
setTimeout(() => post("/cancel", { job_id: "node-elsewhere" }), 300);
try {
  for await (const _ of elsewhere);
  seen.elsewhere = "ended";
} catch (error) {
  seen.elsewhere = { name: error.constructor.name, code: error.code };
}
setTimeout(() => post("/cancel", { job_id: "node-whole" }), 300);
try {
  await client.chat.completions.create({ model, messages: user(slow) }, { headers: { "X-Job-Id": "node-whole" } });
  seen.cancelledWhole = "ended";
} catch (error) {
  seen.cancelledWhole = { status: error.status, code: error.code };
}

// In the background.
const begun = await client.responses.create({ model, input: slow, background: true });
const first = await client.responses.cancel(begun.id);
const second = await client.responses.cancel(begun.id);
seen.background = [first.status, second.status, (await client.responses.retrieve(begun.id)).status];

const events = [];
for await (const event of await client.responses.create({ model, input: says("ab"), stream: true })) events.push(event.type);
seen.events = events;

console.log(JSON.stringify(seen));
