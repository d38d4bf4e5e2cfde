// Tools, structures and retries by way of LangChain.js: node langchain.mjs BASE_URL [CALL...]. Prints one JSON object with
// what came of each call (of all if none is named). Called by tests/clients/test_tools.py and test_bundled_model.py.
import { HumanMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI } from "@langchain/openai";

const [base, ...only] = process.argv.slice(2);
const call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}';
const whole = JSON.stringify({ text: `${call}\n</tool_call>`, token_ms: 0 });
const open = JSON.stringify({ text: call, token_ms: 5 }); // The output continues behind the script, without text.
const slow = JSON.stringify({ token_ms: 20 });
const answer = JSON.stringify({ text: "Sunny.", token_ms: 0 });
const object = JSON.stringify({ text: '{"city": "Bern"}', token_ms: 0 });

const properties = { city: { type: "string", enum: ["Bern", "Oslo"] } };
const schema = { title: "place", type: "object", properties, required: ["city"], additionalProperties: false };
const weather = tool(async () => answer, { name: "weather", description: "Forecast.", schema });
const made = (more = {}) =>
  new ChatOpenAI({ model: "scripted", apiKey: "none", temperature: 0, configuration: { baseURL: `${base}/v1` }, ...more });
const bound = made().bindTools([weather]);

// The user of the library runs the tool, and sends its result.
async function finished(message) {
  const results = await Promise.all(message.tool_calls.map((one) => weather.invoke(one)));
  if (!results.every((one) => one instanceof ToolMessage)) throw new Error("no tool message");
  return { text: (await bound.invoke([new HumanMessage(whole), message, ...results])).content, args: message.tool_calls[0].args };
}

async function read(stream) {
  let message;
  for await (const chunk of stream) message = message ? message.concat(chunk) : chunk;
  return message;
}

// Waits until a job has generated as many tokens, and cancels it. Its receipt.
async function cancelled(job, tokens) {
  const until = Date.now() + 60_000;
  let record = {};
  while ((record.tokens_out ?? 0) <= tokens) {
    if (Date.now() > until) throw new Error(`not generated after 60 s: ${JSON.stringify(record)}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
    record = await (await fetch(`${base}/jobs/${job}`)).json();
  }
  const asked = { method: "POST", body: JSON.stringify({ job_id: job }), headers: { Prefer: "wait=10" } };
  return (await (await fetch(`${base}/cancel`, asked)).json()).receipt;
}

async function raised(asking) {
  try {
    return await asking;
  } catch (error) {
    return { raised: error.constructor.name, message: error.message };
  }
}

const structured = (method, prompt, more) => made(more).withStructuredOutput(schema, { name: "place", method }).invoke(prompt);
const ways = {
  whole: async () => finished(await bound.invoke(whole)),
  stream: async () => finished(await read(await bound.stream(whole))),
  jsonSchema: () => structured("jsonSchema", "x"),
  functionCalling: () => structured("functionCalling", "x"),
  jsonMode: () => structured("jsonMode", object), // which only promises JSON: the engine writes the right one
  async cancelled() {
    const headers = { "X-Job-Id": "langchain-js-cancelled" };
    const stream = made({ modelKwargs: { ignore_eos: true } }).bindTools([weather]).stream(open, { headers });
    const cancelling = cancelled(headers["X-Job-Id"], call.length);
    return { ...(await raised(stream.then(read))), receipt: await cancelling };
  },
  async retried() {
    const headers = { "X-Job-Id": "langchain-js-retried" };
    const again = made().withRetry({ stopAfterAttempt: 2 });
    const asking = raised(again.invoke(slow, { options: { headers } }));
    const receipt = await cancelled(headers["X-Job-Id"], 3);
    return { ...(await asking), receipt };
  },
};

const seen = {};
for (const [name, ask] of Object.entries(ways)) {
  if (!only.length || only.includes(name)) seen[name] = await raised(ask());
}
console.log(JSON.stringify(seen));
