// A client library for Node, driven line by line: node clients.mjs NAME BASE_URL.
// Called by tests/clients/puppet.py, which describes the lines that are read and printed.
import readline from "node:readline";
import { ChatOpenAI } from "@langchain/openai";
import OpenAI from "openai";

const [name, url] = process.argv.slice(2);
const model = "scripted";
const baseURL = `${url}/v1`;
const say = (outcome) => console.log(`\n${JSON.stringify(outcome)}`); // whatever an example has printed before

// Each has whole(): the text of an answer that is not streamed, and stream(): reads a streamed answer, and leaves it as
// the library's users do once read() has had enough.
const clients = {
  openai() {
    const client = new OpenAI({ baseURL, apiKey: "none" });
    const asked = (prompt) => ({ model, messages: [{ role: "user", content: prompt }] });
    return {
      async whole(prompt, { headers, signal }) {
        return (await client.chat.completions.create(asked(prompt), { headers, signal })).choices[0].message.content;
      },
      async stream(prompt, { headers, signal, read }) {
        const stream = await client.chat.completions.create({ ...asked(prompt), stream: true }, { headers, signal });
        for await (const chunk of stream) if (read(chunk.choices[0].delta.content)) break;
      },
    };
  },

  langchain() {
    const client = new ChatOpenAI({ model, apiKey: "none", configuration: { baseURL } });
    return {
      async whole(prompt, { headers, signal }) {
        return (await client.invoke(prompt, { signal, options: { headers } })).content;
      },
      async stream(prompt, { headers, signal, read }) {
        for await (const chunk of await client.stream(prompt, { signal, headers })) {
          if (read(chunk.content)) break;
        }
      },
    };
  },

  "ai-sdk": () => aiSdk("ai", "@ai-sdk/openai-compatible"),
  "ai-sdk-6": () => aiSdk("ai-sdk-6", "ai-sdk-6-openai-compatible"),
};

async function aiSdk(sdk, openAICompatible) {
  const [{ generateText, streamText }, { createOpenAICompatible }] = await Promise.all([
    import(sdk),
    import(openAICompatible),
  ]);
  const provider = createOpenAICompatible({ name: "worker", baseURL });
  return {
    async whole(prompt, { headers, signal: abortSignal }) {
      return (await generateText({ model: provider(model), prompt, headers, abortSignal })).text;
    },
    async stream(prompt, { headers, signal: abortSignal, read }) {
      let failed;
      const onError = ({ error }) => (failed = error);
      const { textStream } = streamText({ model: provider(model), prompt, headers, abortSignal, onError });
      for await (const text of textStream) if (read(text)) break;
      if (failed) throw Object.assign(new Error(failed.message), { raised: "passed to onError" });
    },
  };
}

const client = await clients[name]();
const calls = new Map();

async function ask({ id, call, prompt, headers, leave_after: leaveAfter }) {
  const controller = new AbortController();
  calls.set(id, controller);
  let text = "";
  let pieces = 0;
  const read = (piece) => {
    text += piece ?? "";
    if (piece) pieces += 1;
    return pieces === leaveAfter;
  };
  try {
    if (call === "run") await import(id);
    else text = (await client[call](prompt, { headers, signal: controller.signal, read })) ?? text;
    say({ call: id, text });
  } catch (error) {
    say({ call: id, raised: error.raised ?? error.constructor.name, message: String(error.message) });
  }
}

say({ ready: name });
for await (const line of readline.createInterface({ input: process.stdin })) {
  const order = JSON.parse(line);
  if (order.stop) calls.get(order.stop).abort();
  else ask(order);
}
