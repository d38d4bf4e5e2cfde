"""`worker-orcd cancel JOB_ID`: cancel a job or a group of jobs, and show the receipts."""

from typing import Annotated

import typer

from worker_orcd.cli.completion_values import live_groups, live_jobs
from worker_orcd.cli.connection import Url, connected
from worker_orcd.cli.output import line, write_json
from worker_orcd.cli.receipts import receipt_line, what_happened
from worker_orcd.client import CANCEL_SEC, DEFAULT_URL, SyncClient


def command(
    job_id: Annotated[
        str | None,
        typer.Argument(metavar="JOB_ID", help="the exact id of the job to stop", autocompletion=live_jobs),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="GROUP", help="stop every live job of this group instead", autocompletion=live_groups
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="the response and the job's record, as JSON")
    ] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Cancel a job and show its receipt.

    The job stops in any phase. Cancelling it again has no effect.

    Exit codes: 0 the worker has accepted the cancel; 1 it cannot be reached, or refused; 2 wrong usage.
    """
    if (job_id is None) == (group is None):
        raise typer.BadParameter("either JOB_ID or --group is required")
    with connected(url) as client:
        if job_id is not None:
            _cancel_job(client, job_id, as_json=as_json)
        elif group is not None:
            _cancel_group(client, group, as_json=as_json)


def _cancel_job(client: SyncClient, job_id: str, *, as_json: bool) -> None:
    answer = client.ask("POST", "/cancel", body={"job_id": job_id}, allowed=(202,))
    record = client.ended(job_id)
    if as_json:
        write_json({"status": answer.status, "answer": answer.body, "record": record})
    else:
        line(what_happened(job_id, record))


def _cancel_group(client: SyncClient, group: str, *, as_json: bool) -> None:
    if as_json:
        wait = {"Prefer": f"wait={CANCEL_SEC}"}
        answer = client.ask("POST", "/cancel", body={"group": group}, headers=wait, allowed=(200, 202))
        write_json({"status": answer.status, "answer": answer.body})
        return
    receipts = client.cancel(group=group)
    for receipt in receipts:
        line(f"job {receipt.job_id} cancelled (reason {receipt.reason}): {receipt_line(receipt)}")
    still = [record for record in client.jobs(ended=0) if record["group"] == group]
    for record in still:
        line(what_happened(record["job_id"], record))
    if not receipts and not still:
        line(f"group {group} has no live jobs; nothing to stop")
