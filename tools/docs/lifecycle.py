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
            MADE,
            "Everything that may happen to a job's state is one table, `TRANSITIONS` in "
            "`src/worker_orcd/jobs/lifecycle.py`. "
            "A trigger that a state does not list is illegal: it raises, and the job stays as it was.",
            fenced("mermaid", lifecycle.mermaid()),
            "*Asked to stop* and *has stopped* are different facts. `stop` may come from anybody, any number of "
            "times, and the first one counts. `stopped` is stated by the engine alone, `engine_lost` by its death. "
            "Only they, or an end that the engine reported before it saw the stop, end a job that was running: "
            "what it held is free before its terminal event is written. `give_up` is the one exception.",
            "## States",
            table(("state", "meaning"), [(code(s), t) for s, t in described(lifecycle.State).items()]),
            "## Triggers",
            table(("trigger", "meaning"), [(code(s), t) for s, t in described(lifecycle.Trigger).items()]),
            "## The table",
            table(("state", "trigger", "next state"), rows),
            "## What ends a job, and what its reader gets",
            table(
                ("how it ends", "last event"),
                [
                    ("its natural end, and nobody had asked to stop it", "`end`"),
                    ("anything, after a client, a lost reader or a shutdown asked", "`error` `CANCELLED`"),
                    ("anything, after its deadline asked", "`error` `INFERENCE_TIMEOUT`"),
                    ("it failed, and nobody had asked", "`error` with the failure's code"),
                    ("three engines died with it, and nobody had asked", "`error` `ENGINE_LOST`"),
                ],
            ),
            "For people, a record shows ended jobs as `completed`, `cancelled`, `timed_out` or `failed`.",
        ]
    )
