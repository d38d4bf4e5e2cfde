"""The messages that an engine's loop sent, by kind."""

from typing import Any

from worker_orcd.engine.loop import EngineLoop
from worker_orcd.engine.model import Model
from worker_orcd.engine.run import Run
from worker_orcd.protocol.messages import AuditFault, FromEngine, Ping, Step, Stop, Stopped, Submit
from worker_orcd.sampling import SamplingParams


class LoopReports:
    """A loop that a test turns by hand, with its inbox and all messages that it sent."""

    loop: EngineLoop
    model: Model

    def __init__(self) -> None:
        self.sent: list[FromEngine] = []
        self.inbox: list[Run | Stop | Ping] = []

    def finish(self, most: int = 3000) -> None:
        """Turn until there is nothing to compute."""
        for _ in range(most):
            if not self.loop.turn() and not self.inbox:
                return
        raise AssertionError(f"still computing after {most} turns")

    @property
    def steps(self) -> list[Step]:
        """Its reports of steps."""
        return [message for message in self.sent if isinstance(message, Step)]

    @property
    def stopped(self) -> list[Stopped]:
        """Its confirmations of stops."""
        return [message for message in self.sent if isinstance(message, Stopped)]

    @property
    def faults(self) -> list[AuditFault]:
        """Differences that its audits found."""
        return [message for message in self.sent if isinstance(message, AuditFault)]

    def tokens(self, run: int) -> list[int]:
        """Ids of the tokens that it reported for a run."""
        outs = [out for step in self.steps for out in step.tokens if out.run == run]
        return [out.token for out in outs if out.token is not None]

    def ends(self, run: int) -> list[str]:
        """How a run ended: a reason, or an error's code. More than one would be a defect."""
        return [
            end.reason or end.error_code or "?" for step in self.steps for end in step.ended if end.run == run
        ]

    def cells_held(self) -> list[int]:
        """Cells of each sequence id that runs can have without any for warm prefixes."""
        return [self.model.cells(sequence) for sequence in range(self.model.facts.sequences)]


def run_of_tokens(
    run: int, prompt: tuple[int, ...], *, max_tokens: int = 4, generated: tuple[int, ...] = (), **given: Any
) -> Run:
    """A run of these prompt tokens; `given` overrides default fields of its request."""
    values: dict[str, Any] = {
        "job_id": f"job-{run}",
        "correlation_id": f"cor-{run}",
        "prompt": "",
        "template": "none",
        "stop": (),
        "max_stop_tokens": 32,
        "sampling": SamplingParams(seed=run),
        "prompt_chars": len(prompt),
        "prompt_sha256": "0" * 64,
    }
    return Run(Submit(run, **values | given), prompt, max_tokens, generated)
