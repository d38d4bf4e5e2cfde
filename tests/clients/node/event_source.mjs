// Follows a job with the package `eventsource`: node event_source.mjs URL CLOSE_AFTER. Called by test_event_source.py.
// Prints what was seen once the source is closed: by itself, or by this program after so many tokens (0: never).
import { EventSource } from "eventsource";

const [url, closeAfter] = process.argv.slice(2);
const seen = { events: [], statuses: [] };
const source = new EventSource(url, {
  fetch: async (...asked) => {
    const answer = await fetch(...asked);
    seen.statuses.push(answer.status);
    return answer;
  },
});
let closed = false;
const look = (event) => {
  if (closed) return; // what has come with the last event
  if (event.data) seen.events.push(event.lastEventId);
  if (seen.events.length === Number(closeAfter)) source.close();
  closed = source.readyState === EventSource.CLOSED;
  if (closed) console.log(JSON.stringify(seen));
};
for (const name of ["started", "token", "end", "error"]) source.addEventListener(name, look);
