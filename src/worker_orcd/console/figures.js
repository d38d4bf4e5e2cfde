// What is computed of what the worker says; nothing here touches the page.

/** The value of a metric without labels in Prometheus' text format, or null. */
export function metric(text, name) {
  const line = text.split("\n").find((one) => one.startsWith(name + " "));
  return line ? Number(line.slice(name.length + 1)) : null;
}

/** Values that are kept for a while, one for each look. */
export class Window {
  constructor(seconds) {
    this.seconds = seconds;
    this.times = [];
    this.values = [];
  }

  add(time, ...values) {
    this.times.push(time);
    values.forEach((value, n) => (this.values[n] ??= []).push(value));
    while (this.times[0] < time - this.seconds) {
      this.times.shift();
      this.values.forEach((kept) => kept.shift());
    }
  }

  get data() {
    return [this.times, ...this.values];
  }
}

/** Tokens per second between two looks at the counter; 0 when it began anew. */
export function rate(before, now) {
  const seconds = now.time - before.time;
  return before.count === null || now.count === null || seconds <= 0 ? 0 : Math.max(0, (now.count - before.count) / seconds);
}

export const EDGES = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000];

/** How many of these milliseconds are at most each edge and more than the one before; the last is all above. */
export function histogram(values) {
  const counts = new Array(EDGES.length + 1).fill(0);
  for (const value of values) {
    const place = EDGES.findIndex((edge) => value <= edge);
    counts[place < 0 ? EDGES.length : place] += 1;
  }
  return counts;
}

export function quantile(values, part) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.ceil(part * sorted.length) - 1)] : null;
}

export const ms = (value) => (value === null || value === undefined ? "" : value < 100 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`);

const LABEL = 0.22;

/**
 * The marks of a receipt's timeline: names, milliseconds, places from 0 to 1 that are to scale, and places of their labels,
 * which stand as near as they can without lying on each other.
 */
export function marks(receipt) {
  const stages = [["accepted", 0], ["stopped", receipt.stopped_ms], ["freed", receipt.freed_ms], ["terminal", receipt.terminal_ms]];
  const known = stages.filter(([, at]) => at !== null);
  const last = Math.max(...known.map(([, at]) => at), 0.001);
  let label = -LABEL;
  return known.map(([name, at], n) => {
    const place = at / last;
    label = Math.min(Math.max(place, label + LABEL), 1 - LABEL * (known.length - 1 - n));
    return { name, at, place, label };
  });
}
