// Tools and objects by way of the AI SDK: node tools.mjs BASE_URL SDK OPENAI_COMPATIBLE [CALL...], the two packages by the
// names that they have in package.json. Prints one JSON object: what each call came to (all calls if none is named), and what
// the tool was called with. Called by tests/clients/test_tools.py and test_bundled_model.py.
const [base, sdk, openAICompatible, ...only] = process.argv.slice(2);
const { generateObject, generateText, jsonSchema, Output, stepCountIs, streamText, tool } = await import(sdk);
const { createOpenAICompatible } = await import(openAICompatible);

const call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}';
const whole = JSON.stringify({ text: `${call}\n</tool_call>`, token_ms: 0 });
const open = JSON.stringify({ text: call, token_ms: 5 }); // The output continues behind the script, without text.
const answer = JSON.stringify({ text: "Sunny.", token_ms: 0 });

const provider = createOpenAICompatible({ name: "worker", baseURL: `${base}/v1`, supportsStructuredOutputs: true });
const model = provider("scripted");
const properties = { city: { enum: ["Bern", "Oslo"] } };
const schema = jsonSchema({ type: "object", properties, required: ["city"], additionalProperties: false });
let calledWith = [];
const weather = tool({
  description: "Forecast. What it returns is the script of the engine's next answer.",
  inputSchema: schema,
  execute: async ({ city }) => {
    calledWith.push(city);
    return answer;
  },
});
const asked = { model, tools: { weather }, stopWhen: stepCountIs(3), maxRetries: 0 };
const endless = (job) => ({ headers: { "X-Job-Id": job }, providerOptions: { worker: { ignore_eos: true } } });

async function generated(job) {
  const until = Date.now() + 60_000;
  let record = {};
  while ((record.tokens_out ?? 0) <= call.length) {
    if (Date.now() > until) throw new Error(`the call is not there after 60 s: ${JSON.stringify(record)}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
    record = await (await fetch(`${base}/jobs/${job}`)).json();
  }
}

// Reads a stream of half a call, which is ended by `end`.
async function broken(job, end, more = {}) {
  const failed = [];
  const onError = ({ error }) => failed.push(error.message);
  const { fullStream } = streamText({ ...asked, ...endless(job), ...more, prompt: open, onError });
  const ending = generated(job).then(end);
  const parts = [];
  for await (const part of fullStream) parts.push(part);
  const calls = parts.filter(({ type, invalid }) => type === "tool-call" && !invalid).length;
  return { calls, aborted: parts.some(({ type }) => type === "abort"), failed, receipt: await ending };
}

const calls = {
  whole: async () => ({ text: (await generateText({ ...asked, prompt: whole })).text }),
  stream: async () => ({ text: await streamText({ ...asked, prompt: whole }).text }),
  object: async () => (await generateObject({ model, schema, prompt: "x", temperature: 0 })).object,
  output: async () => {
    const output = Output.object({ schema }); // SDK 7 prefers it to generateObject
    return (await generateText({ model, output, prompt: "x", temperature: 0 })).output;
  },
  forced: async () => {
    const forced = { toolChoice: "required", stopWhen: stepCountIs(1), temperature: 0 };
    return (await generateText({ ...asked, ...forced, prompt: "x" })).toolCalls.map(({ toolName }) => toolName);
  },
  cancelled: () => {
    const cancel = { method: "POST", body: JSON.stringify({ job_id: `cancelled-${sdk}` }), headers: { Prefer: "wait=10" } };
    return broken(`cancelled-${sdk}`, async () => (await fetch(`${base}/cancel`, cancel)).json());
  },
  aborted: () => {
    const controller = new AbortController();
    return broken(`aborted-${sdk}`, () => controller.abort(), { abortSignal: controller.signal });
  },
};

const seen = {};
for (const [name, ask] of Object.entries(calls)) {
  if (only.length && !only.includes(name)) continue;
  calledWith = [];
  seen[name] = { outcome: await ask(), calledWith };
}
console.log(JSON.stringify(seen));
