"""The lifecycle of a job: one table with every transition of its state.

A trigger that is not in a state's row is illegal: it raises an exception and leaves the job unchanged.

The request to stop and the stop are different facts. A stop request (`STOP`) moves a running job to `STOPPING`. Only
the engine's confirmation (`STOPPED`) or its death (`ENGINE_LOST`) ends the job, so everything that a job held is free
before it is `ENDED` (guarantee G4). A job that loses its engine is queued again, and a job that loses its cells waits
again; both continue after their last token (G7). `GIVE_UP` is the only exception, for an engine whose death was not
confirmed in time.
"""

from enum import StrEnum


class State(StrEnum):
    """The state of a job."""

    QUEUED = "queued"
    """Accepted but not handed over, or requeued. Can be ended locally."""
    WAITING = "waiting"
    """Handed over: waits in the engine and holds no cells. Shown as queued to clients."""
    RUNNING = "running"
    """The engine holds a sequence and KV cells for the job."""
    STOPPING = "stopping"
    """Stop requested but not yet confirmed by the engine."""
    ENDED = "ended"
    """The job has its terminal event and holds no cells."""


class Trigger(StrEnum):
    """The events that change a job's state."""

    HAND_OVER = "hand_over"
    """The job is handed to the engine."""
    START = "start"
    """The engine has given the job a slot."""
    TOKEN = "token"
    """The engine reports a token."""
    STOP = "stop"
    """A stop request with any `StopReason`. The first one counts."""
    STOPPED = "stopped"
    """The engine confirms that it computes nothing and holds no cells for the job."""
    FINISH = "finish"
    """The engine reports the job's natural end. Its cells are free."""
    FAIL = "fail"
    """The job cannot continue: the engine failed to compute it (its cells are free), or its prompt can never fit."""
    ENGINE_LOST = "engine_lost"
    """The engine process is dead, and its cells are gone."""
    PREEMPT = "preempt"
    """The engine has preempted the job, because others need its cells or its slot."""
    RETURN = "return"
    """The engine has returned a waiting job to the front, because many more urgent ones wait in the engine."""
    GIVE_UP = "give_up"
    """The cancel deadline has passed, and not even the engine's death is confirmed."""


TRANSITIONS: dict[State, dict[Trigger, State]] = {
    State.QUEUED: {
        Trigger.HAND_OVER: State.WAITING,
        Trigger.STOP: State.ENDED,
        Trigger.FAIL: State.ENDED,
        Trigger.ENGINE_LOST: State.QUEUED,
    },
    State.WAITING: {
        Trigger.START: State.RUNNING,
        Trigger.STOP: State.STOPPING,
        Trigger.FAIL: State.ENDED,
        Trigger.ENGINE_LOST: State.QUEUED,
        Trigger.RETURN: State.QUEUED,
    },
    State.RUNNING: {
        Trigger.TOKEN: State.RUNNING,
        Trigger.STOP: State.STOPPING,
        Trigger.FINISH: State.ENDED,
        Trigger.FAIL: State.ENDED,
        Trigger.ENGINE_LOST: State.QUEUED,
        Trigger.PREEMPT: State.WAITING,
    },
    State.STOPPING: {
        Trigger.START: State.STOPPING,
        Trigger.TOKEN: State.STOPPING,
        Trigger.STOP: State.STOPPING,
        Trigger.STOPPED: State.ENDED,
        Trigger.FINISH: State.ENDED,
        Trigger.FAIL: State.ENDED,
        Trigger.ENGINE_LOST: State.ENDED,
        Trigger.PREEMPT: State.STOPPING,
        Trigger.RETURN: State.STOPPING,
        Trigger.GIVE_UP: State.ENDED,
    },
    State.ENDED: {
        Trigger.STOP: State.ENDED,
    },
}


def shown_as(state: State) -> State:
    """The state of a live job for clients, for whom waiting here and in the engine are the same."""
    return State.QUEUED if state is State.WAITING else state


class IllegalTransition(Exception):
    """The lifecycle table has no such transition. The job is unchanged."""


def following(state: State, trigger: Trigger) -> State:
    """The state that `trigger` leads to from `state`.

    Raises:
        IllegalTransition: the table has no such transition.
    """
    try:
        return TRANSITIONS[state][trigger]
    except KeyError:
        raise IllegalTransition(f"a {state} job cannot {trigger}") from None


def mermaid() -> str:
    """The table as a Mermaid state diagram, for the docs.

    Triggers that do not change a state are listed in its box, because Mermaid draws loops over other labels.
    """
    boxes, arrows = [], []
    for state, row in TRANSITIONS.items():
        targets: dict[State, list[str]] = {}
        for trigger, target in row.items():
            targets.setdefault(target, []).append(trigger.value)
        staying = f"<br/>stays on: {', '.join(targets.pop(state))}" if state in targets else ""
        boxes.append(f'    state "{state}{staying}" as {state}')
        arrows += [f"    {state} --> {target}: {', '.join(names)}" for target, names in targets.items()]
    return "\n".join(["stateDiagram-v2", *boxes, "    [*] --> queued", *arrows, "    ended --> [*]"]) + "\n"
