// The console's own modules: node --test tests/console
import assert from "node:assert/strict";
import { test } from "node:test";

const from = (name) => import(new URL(`../../src/worker_orcd/console/${name}`, import.meta.url));
const { EDGES, Window, histogram, marks, metric, ms, quantile, rate } = await from("figures.js");
const { SseParser, events } = await from("sse.js");

const wire = ': hello\n\nevent: started\ndata: {"a":1}\nid: 0\n\ndata: x\ndata: y\n\nevent: token\ndata: {"t":"\\n\\n👋"}\nid: 1\n\n';
const wanted = [
  { event: "started", data: '{"a":1}', id: "0" },
  { event: "message", data: "x\ny", id: null },
  { event: "token", data: '{"t":"\\n\\n👋"}', id: "1" },
];

test("events come whole, wherever the stream is cut", () => {
  for (let at = 0; at <= wire.length; at += 1) {
    const parser = new SseParser();
    assert.deepEqual([...parser.push(wire.slice(0, at)), ...parser.push(wire.slice(at))], wanted);
  }
});

test("an unfinished event is none", () => {
  assert.deepEqual(new SseParser().push("event: end\ndata: {}\n"), []);
});

test("events come out of an answer, characters cut in their bytes too", async () => {
  const bytes = new TextEncoder().encode(wire);
  const pieces = [...bytes].map((byte) => Uint8Array.of(byte));
  const seen = [];
  for await (const event of events(new Response(ReadableStream.from(pieces)))) seen.push(event);
  assert.deepEqual(seen, wanted);
});

test("a metric is found by its whole name", () => {
  const text = "# HELP a b\na_total_created 7\na_total 12.0\n";
  assert.equal(metric(text, "a_total"), 12);
  assert.equal(metric(text, "a"), null);
});

test("a window forgets what is too old", () => {
  const kept = new Window(10);
  for (let n = 0; n < 30; n += 1) kept.add(n, n, -n);
  assert.deepEqual(kept.data.map((one) => one.length), [11, 11, 11]);
  assert.equal(kept.data[0][0], 19);
});

test("a rate is never negative, also when the counter begins anew", () => {
  assert.equal(rate({ time: 1, count: 10 }, { time: 3, count: 30 }), 10);
  assert.equal(rate({ time: 1, count: 10 }, { time: 3, count: 0 }), 0);
  assert.equal(rate({ time: 1, count: null }, { time: 3, count: 5 }), 0);
});

test("a histogram counts each value once", () => {
  const counts = histogram([0.5, 1, 1.5, 99, 100, 9999]);
  assert.equal(counts.reduce((a, b) => a + b), 6);
  assert.equal(counts[0], 2);
  assert.equal(counts[EDGES.indexOf(100)], 2);
  assert.equal(counts[EDGES.length], 1);
  assert.equal(quantile([3, 1, 2], 0.5), 2);
  assert.equal(quantile([], 0.5), null);
});

test("the marks of a receipt are to scale, their labels in order, apart, and within", () => {
  for (const receipt of [
    { stopped_ms: 0, freed_ms: 0, terminal_ms: 0 },
    { stopped_ms: 8.1, freed_ms: 8.2, terminal_ms: 8.2 },
    { stopped_ms: 1, freed_ms: 500, terminal_ms: 501 },
    { stopped_ms: 1011, freed_ms: null, terminal_ms: 1012 },
  ]) {
    const all = marks(receipt);
    for (const { at, place } of all) assert.ok(Math.abs(place - at / Math.max(receipt.terminal_ms, 0.001)) < 1e-9);
    const labels = all.map((mark) => mark.label);
    for (let n = 1; n < labels.length; n += 1) assert.ok(labels[n] - labels[n - 1] >= 0.2, `${labels}`);
    assert.ok(labels[0] >= 0 && labels.at(-1) <= 1);
  }
});

test("milliseconds read well", () => {
  assert.deepEqual([ms(null), ms(1.234), ms(1011.4)], ["", "1.2 ms", "1011 ms"]);
});
