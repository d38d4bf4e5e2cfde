"""The messages: one closed union for each direction. A message's new fields come last and have defaults.

For example:

    from worker_orcd.protocol.messages import Stop, Stopped
"""

from worker_orcd.protocol.messages.loading import (
    Load,
    LoadFailed,
    Loading,
    Measured,
    Percent,
    Pooling,
    Ready,
    StepCosts,
)
from worker_orcd.protocol.messages.message import Message
from worker_orcd.protocol.messages.monitoring import AuditFault, NarrationEvent, Ping, Pong, Stored
from worker_orcd.protocol.messages.runs import (
    Accepted,
    Begin,
    Constraint,
    Drop,
    Rejected,
    Rendering,
    Started,
    Stop,
    Stopped,
    Submit,
    Template,
    Tokenize,
    Tokenized,
)
from worker_orcd.protocol.messages.steps import (
    EndOfRun,
    Progress,
    PromptLogprobs,
    Step,
    StepOutcome,
    TokenOut,
)

__all__ = [
    "Accepted",
    "AuditFault",
    "Begin",
    "Constraint",
    "Drop",
    "EndOfRun",
    "FromEngine",
    "Load",
    "LoadFailed",
    "Loading",
    "Measured",
    "Message",
    "NarrationEvent",
    "Percent",
    "Ping",
    "Pong",
    "Pooling",
    "Progress",
    "PromptLogprobs",
    "Ready",
    "Rejected",
    "Rendering",
    "Started",
    "Step",
    "StepCosts",
    "StepOutcome",
    "Stop",
    "Stopped",
    "Stored",
    "Submit",
    "Template",
    "ToEngine",
    "TokenOut",
    "Tokenize",
    "Tokenized",
]

ToEngine = Load | Submit | Tokenize | Drop | Begin | Stop | Ping

FromEngine = (
    Loading
    | Measured
    | Ready
    | LoadFailed
    | Accepted
    | Tokenized
    | Rejected
    | Rendering
    | Started
    | Step
    | Stopped
    | Stored
    | Pong
    | AuditFault
    | NarrationEvent
)
