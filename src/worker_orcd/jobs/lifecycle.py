"""The life of a job as one table, which has every transition of a job's state.

This file knows neither clients nor readers. A trigger that a state does not list is illegal:
it raises and leaves the job as it was.

Two facts are kept apart. *Asked to stop* (`STOP`) moves a running job to `STOPPING`. *Has stopped*
(`STOPPED`, `ENGINE_LOST`) is stated by the engine or by its death alone, and only that ends the job:
whatever a job held is free before it is `ENDED` (guarantee G4). A job that loses its engine is queued again, one that
loses its cells waits again; both continue after their last token (G7). `GIVE_UP` is the one exception, for an engine
whose death could not be confirmed in time (contract, section 3).
"""

from enum import StrEnum


class State(StrEnum):
    """The state of a job."""

    QUEUED = "queued"
    """Accepted but not handed to the engine, or requeued; can be ended locally."""
    WAITING = "waiting"
    """Handed to the engine, where it waits for its turn and holds no cells. Clients see it as queued."""
    RUNNING = "running"
    """The engine holds a sequence and KV cells for it."""
    STOPPING = "stopping"
    """Asked to stop; the engine has not yet confirmed."""
    ENDED = "ended"
    """The terminal event is decided, and no cells are held."""


class Trigger(StrEnum):
    """What can happen to a job."""

    HAND_OVER = "hand_over"
    """The job is handed to the engine, which continues after the tokens generated so far when it is its turn."""
    START = "start"
    """The engine has given it a slot."""
    TOKEN = "token"
    """The engine reports a token."""
    STOP = "stop"
    """A stop request, for any of the reasons of `StopReason`. The first one counts."""
    STOPPED = "stopped"
    """The engine confirms that it computes nothing and holds no cells for the job."""
    FINISH = "finish"
    """The engine reports the job's natural end; its cells are free."""
    FAIL = "fail"
    """The job cannot continue: the engine failed on it (its cells are free), or its prompt can never fit."""
    ENGINE_LOST = "engine_lost"
    """The engine process is dead; its cells are gone."""
    PREEMPT = "preempt"
    """The engine has preempted the job: others need its cells or its place."""
    RETURN = "return"
    """The engine gives a waiting job back to the front, because many more urgent ones wait in the engine."""
    GIVE_UP = "give_up"
    """The cancel deadline passed and not even the engine's death is confirmed."""


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
    """The state of a live job as clients see it: whether it waits here or in the engine does not matter to them."""
    return State.QUEUED if state is State.WAITING else state


class IllegalTransition(Exception):
    """The lifecycle table has no such row; the job is unchanged."""


def following(state: State, trigger: Trigger) -> State:
    """The state that `trigger` leads to from `state`.

    Raises:
        IllegalTransition: the table has no such row.
    """
    try:
        return TRANSITIONS[state][trigger]
    except KeyError:
        raise IllegalTransition(f"a {state} job cannot {trigger}") from None


def mermaid() -> str:
    """The table as a Mermaid state diagram, for the docs.

    Triggers that keep a state are listed in its box, because Mermaid draws loops over other labels.
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
