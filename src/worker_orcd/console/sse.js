// Server-sent events out of a fetch's body: EventSource can neither POST nor show a key.

export class SseParser {
  #rest = "";

  /** Takes a piece of the stream; returns the events that are complete with it: {event, data, id}. */
  push(text) {
    const frames = (this.#rest + text).split("\n\n");
    this.#rest = frames.pop();
    return frames.map(parseFrame).filter(Boolean);
  }
}

function parseFrame(frame) {
  const found = { event: "message", data: null, id: null };
  for (const line of frame.split("\n")) {
    const at = line.indexOf(":");
    if (at < 1) continue; // a comment
    const value = line.slice(at + 1).replace(/^ /, "");
    const name = line.slice(0, at);
    if (name === "data") found.data = found.data === null ? value : found.data + "\n" + value;
    else if (name === "event" || name === "id") found[name] = value;
  }
  return found.data === null ? null : found;
}

/** The events of an answer, as they come. */
export async function* events(response) {
  const parser = new SseParser();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(value);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
