"""`worker-orcd cancel JOB_ID`: stop a job, and say what became of it."""

import json
from typing import Annotated

import typer

from worker_orcd.cli.client import DEFAULT_URL, Json, Url, connected, receipt_line


def command(
    job_id: Annotated[str, typer.Argument(metavar="JOB_ID", help="the job to stop, exactly")],
    as_json: Annotated[bool, typer.Option("--json", help="the answer and the job's record, as JSON")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Cancel a job, whatever it is doing, and show the receipt. Doing it twice does no harm."""
    with connected(url) as client:
        answer = client.cancel(job_id)
        if not as_json:
            print(answer.status, json.dumps(answer.body), flush=True)
        record = client.ended_record(job_id)
    if as_json:
        print(json.dumps({"status": answer.status, "answer": answer.body, "record": record}))
    else:
        print(_what_happened(job_id, record))


def _what_happened(job_id: str, record: Json | None) -> str:
    if record is None:
        return f"no job {job_id} is known; nothing to stop"
    if record["ended_ms"] is None:
        return f"job {job_id} is still {record['state']}"
    if record["receipt"] is None:
        return f"job {job_id} had already ended: {record['state']}"
    return f"job {job_id} {record['state']} (reason {record['receipt']['reason']}): {receipt_line(record)}"
