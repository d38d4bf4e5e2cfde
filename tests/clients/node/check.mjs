// OpenAI's package for Node against a worker. Called by test_others.py: node check.mjs BASE_URL; prints one JSON object.
import OpenAI from "openai";

const base = process.argv[2];
const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: "none", maxRetries: 2 });
const model = "scripted";
const user = (content) => [{ role: "user", content }];
const says = (text) => JSON.stringify({ text, token_ms: 1 });
const slow = JSON.stringify({ token_ms: 20 });
const seen = {};

seen.models = (await client.models.list()).data.map((m) => m.id);
seen.whole = (await client.chat.completions.create({ model, messages: user(says("Hello 👋")) })).choices[0].message.content;

let text = "";
for await (const chunk of await client.chat.completions.create({ model, messages: user(says("abc")), stream: true })) {
  text += chunk.choices[0]?.delta?.content ?? "";
}
seen.streamed = text;

// In the background.
const begun = await client.responses.create({ model, input: slow, background: true });
const first = await client.responses.cancel(begun.id);
const second = await client.responses.cancel(begun.id);
seen.background = [first.status, second.status, (await client.responses.retrieve(begun.id)).status];

const events = [];
for await (const event of await client.responses.create({ model, input: says("ab"), stream: true })) events.push(event.type);
seen.events = events;

console.log(JSON.stringify(seen));
