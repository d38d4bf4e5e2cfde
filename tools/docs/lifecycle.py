"""docs/lifecycle.md."""

from tools.docs.markdown import MADE, code, described, fenced, table
from worker_orcd.jobs import lifecycle


def lifecycle_page() -> str:
    """The lifecycle table as a diagram, as rows, and in words."""
    rows = [
        (code(state), code(trigger), code(target))
        for state, row in lifecycle.TRANSITIONS.items()
        for trigger, target in row.items()
    ]
    return "\n\n".join(
        [
            "# The life of a job",
            "*For contributors.*",
            MADE,
            "All transitions of a job's state are in one table, `TRANSITIONS` in `src/worker_orcd/jobs/lifecycle.py`. "
            "A trigger that a state does not list is illegal: it raises an exception, and the job is unchanged.",
            fenced("mermaid", lifecycle.mermaid()),
            "*Asked to stop* and *has stopped* are different facts. `stop` may arrive any number of times, for any of "
            "the reasons; the first one counts. Only the engine can report `stopped`, and only its death is "
            "`engine_lost`. A job that was running ends only with one of these, or with an end that the engine "
            "reported before it read the stop: what the job held is free before its terminal event is written. "
            "`give_up` is the only exception.",
            "## States",
            table(("state", "meaning"), [(code(s), t) for s, t in described(lifecycle.State).items()]),
            "## Triggers",
            table(("trigger", "meaning"), [(code(s), t) for s, t in described(lifecycle.Trigger).items()]),
            "## The table",
            table(("state", "trigger", "next state"), rows),
            "## How a job can end, and the last event of its stream",
            table(
                ("how it ends", "last event"),
                [
                    ("naturally, without a stop request", "`end`"),
                    (
                        "in any way, after a stop request with the reason `timeout`",
                        "`error` `INFERENCE_TIMEOUT`",
                    ),
                    ("in any way, after a stop request with another reason", "`error` `CANCELLED`"),
                    ("by a failure, without a stop request", "`error` with the failure's code"),
                    ("because three engines died with it, without a stop request", "`error` `ENGINE_LOST`"),
                ],
            ),
            "Records show ended jobs as `completed`, `cancelled`, `timed_out` or `failed`.",
        ]
    )
