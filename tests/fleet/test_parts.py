"""The pure parts of a fleet: who keeps an id, which worker gets a job, what is shown of many workers."""

import pickle
import socket
import subprocess
import sys

import pytest

from tests.fakes import at, execute, queued_job, running_job, stop_request
from worker_orcd.fleet.keepers import Claim, Keeper, Verdict, keepers_of
from worker_orcd.fleet.routing import BLOCK_CHARS, MUCH_BUSIER, WarmPrefixes, chain_of, choose
from worker_orcd.fleet.summary import merged_metrics, merged_records
from worker_orcd.jobs.record import record_of
from worker_orcd.jobs.replication import Cursor, apply, restore, whole
from worker_orcd.testing.harness import free_port
from worker_orcd.worker.metrics import Metrics

KEY = ("anna", "job")


def test_a_worker_that_joins_or_dies_changes_only_its_share_of_the_keepers() -> None:
    """Of 1,000 ids it is the first keeper of about its share; no other id changes its first keeper."""
    keys = [("", f"job-{n}") for n in range(1000)]
    before = {key: keepers_of(key, ["a", "b", "c", "d"]) for key in keys}
    after = {key: keepers_of(key, ["a", "b", "c"]) for key in keys}
    moved = [key for key in keys if before[key][0] != after[key][0]]
    assert all(before[key][0] == "d" for key in moved)
    assert 180 < len(moved) < 320
    assert all([name for name in before[key] if name != "d"] == after[key] for key in keys)


def test_an_id_is_claimed_by_one_use() -> None:
    """Until it is known to be over. The same use may go on at another worker."""
    keeper = Keeper(5.0)
    assert keeper.claim(KEY, Claim("1", "a"), at(0)).held_by is None
    assert keeper.claim(KEY, Claim("1", "b"), at(1)).held_by is None
    refused = keeper.claim(KEY, Claim("2", "a"), at(3))
    assert refused.held_by == Claim("1", "b")
    assert refused.held_sec == 2.0, "since it was claimed last"
    assert keeper.claim(KEY, Claim("3", "c"), at(4), replaces="1").held_by is None
    assert keeper.claim(KEY, Claim("2", "a"), at(4), replaces="1").held_by == Claim("3", "c", use=1)
    assert keeper.claim(("berta", "job"), Claim("4", "a"), at(4)).held_by is None


def test_a_dead_routers_job_is_claimed_by_one_other_router() -> None:
    """The first in the next term. Neither a second one nor a router that was only thought to be dead replaces it."""
    keeper = Keeper(5.0)

    def claim(router: str, term: int, worker: str) -> Claim | None:
        return keeper.claim(KEY, Claim("1", worker, router=router, term=term), at(0)).held_by

    assert claim("first", 0, "a") is None
    assert claim("first", 0, "b") is None
    assert claim("second", 1, "c") is None
    held = Claim("1", "c", router="second", term=1)
    assert claim("third", 1, "c") == held
    assert claim("first", 0, "d") == held
    assert keeper.look(KEY) == held
    assert claim("second", 1, "d") is None
    assert claim("third", 2, "e") is None


def test_a_claim_of_parts_adds_to_that_of_a_job() -> None:
    """A cancel of the id is for both. The id of the job stays in use; that of parts alone is free."""
    keeper, parts = Keeper(5.0), Claim("", "", parts=True)
    keeper.claim(KEY, Claim("1", "a"), at(0))
    assert keeper.claim(KEY, parts, at(1)).held_by is None
    assert keeper.look(KEY) == Claim("1", "a", parts=True)
    assert keeper.claim(KEY, Claim("1", "b"), at(2)).held_by is None
    assert keeper.claim(KEY, Claim("2", "a"), at(3)).held_by == Claim("1", "b", parts=True)
    other = ("", "other")
    keeper.remember(other, stop_request(seconds=0.0), at(0))
    assert keeper.claim(other, parts, at(1)).cancelled is not None
    assert keeper.claim(other, Claim("3", "a"), at(2), replaces=parts.incarnation).held_by is None


def test_a_cancel_of_an_unknown_id_is_remembered_once_and_for_a_while() -> None:
    """Not after a refused request, and not for an id whose use is known."""
    keeper = Keeper(5.0)
    assert keeper.remember(KEY, stop_request(seconds=0.0), at(0)).claim is None
    assert keeper.claim(KEY, Claim("1", "a"), at(1)).cancelled is not None
    assert keeper.remember(KEY, stop_request(), at(2)).claim == Claim("1", "a")
    assert keeper.claim(KEY, Claim("2", "a"), at(3), replaces="1").cancelled is None
    keeper.refused(KEY, "2", at(4))
    assert keeper.remember(KEY, stop_request(seconds=5.0), at(5)).claim is None
    assert keeper.claim(KEY, Claim("3", "a"), at(5)).cancelled is None
    other, late = ("", "other"), ("", "late")
    keeper.remember(other, stop_request(seconds=10.0), at(10))
    keeper.remember(late, stop_request(seconds=6.0), at(10))
    assert keeper.claim(late, Claim("5", "a"), at(12)).cancelled is None
    assert keeper.claim(other, Claim("4", "a"), at(16)).cancelled is None


def test_a_remembered_cancel_is_reported_again_to_the_use_that_it_is_for() -> None:
    """An answer may be lost. A router that knows of an earlier use by now does not get it, nor does a later use."""
    keeper = Keeper(5.0)
    keeper.remember(KEY, stop_request(seconds=0.0), at(0))
    first = keeper.claim(KEY, Claim("1", "a", router="r", sent=1), at(1)).cancelled
    assert first is not None
    assert keeper.claim(KEY, Claim("1", "b", router="r", sent=2), at(9)).cancelled == first
    assert keeper.claim(KEY, Claim("1", "b", router="r", sent=3, use=1), at(10)).cancelled is None
    assert keeper.claim(KEY, Claim("2", "a"), at(11), replaces="1").cancelled is None


def test_a_remembered_cancel_is_for_the_first_use_of_an_id() -> None:
    """Another keeper knows of an earlier use, which has used the cancel, or was what it was for."""
    keeper = Keeper(5.0)
    keeper.remember(KEY, stop_request(seconds=0.0), at(0))
    assert keeper.claim(KEY, Claim("2", "a", use=1), at(1)).cancelled is None
    assert keeper.claim(KEY, Claim("3", "a"), at(2), replaces="2") == Verdict(use=2)


def test_a_routers_claim_that_was_overtaken_by_its_next_one_changes_nothing() -> None:
    """The job is at another worker by now. Another router counts its own claims."""
    keeper = Keeper(5.0)
    later = Claim("1", "b", router="r", sent=2)
    keeper.claim(KEY, later, at(0))
    assert keeper.claim(KEY, Claim("1", "a", router="r", sent=1), at(1)).held_by is None
    assert keeper.look(KEY) == later
    keeper.claim(KEY, Claim("1", "c", router="heir", term=1, sent=1), at(2))
    assert keeper.look(KEY) == Claim("1", "c", router="heir", term=1, sent=1)


def test_a_keeper_forgets_what_was_not_claimed_again_for_longest() -> None:
    """A live job's id is claimed again and again."""
    keeper = Keeper(5.0, bound=3)
    for n in range(9):
        keeper.claim(("", f"short-{n}"), Claim(f"{n}", "a"), at(n))
        keeper.claim(("", "long"), Claim("long", "a"), at(n))
    assert keeper.look(("", "long")) is not None
    assert keeper.look(("", "short-0")) is None


def test_a_conversation_goes_where_its_prefix_is_warm_unless_that_worker_is_much_busier() -> None:
    """The next turn begins with what came before; another key's does not count."""
    turn = execute(prompt="x" * (3 * BLOCK_CHARS + 10))
    longer = execute(prompt=turn.prompt + "y" * BLOCK_CHARS)
    warm = WarmPrefixes()
    idle = {"a": 0.0, "b": 0.0, "c": 0.0}
    assert choose(idle, warm, chain_of(turn, "anna")).why == "least_loaded"
    warm.sent("b", chain_of(turn, "anna"))
    choice = choose(idle | {"b": MUCH_BUSIER}, warm, chain_of(longer, "anna"))
    assert (choice.worker, choice.why, choice.warm_blocks, choice.blocks) == ("b", "warm", 3, 4)
    assert choose(idle | {"b": MUCH_BUSIER + 0.1}, warm, chain_of(longer, "anna")).why == "warm_but_busy"
    assert choose(idle | {"a": 0.1}, warm, chain_of(longer, "berta")).why == "least_loaded"
    assert chain_of(execute(cache_prompt=False, prompt=turn.prompt), "anna") == []
    warm.lost("b")
    assert choose(idle, warm, chain_of(longer, "anna")).why == "least_loaded"


def test_warm_prefixes_are_bounded() -> None:
    """The least recently used blocks go first."""
    warm = WarmPrefixes(bound=4)
    old, new = (chain_of(execute(prompt=letter * 3 * BLOCK_CHARS), "") for letter in "ab")
    warm.sent("a", old)
    warm.sent("a", new)
    assert (warm.warm("a", old), warm.warm("a", new)) == (0, 3)


def test_a_copy_follows_its_job_and_restores_it_elsewhere() -> None:
    """Updates may come twice, but not with a gap; times count from the acceptance, on any clock."""
    job, copy, cursor = running_job(), queued_job(run=9), Cursor()
    copy.incarnation = ""
    first = pickle.loads(pickle.dumps(cursor.advance(job, at(2))))  # noqa: S301  # Its own.
    job.token(at(3), 5, "a", held="x")
    job.token(at(4), 6, "b")
    second = cursor.advance(job, at(4))
    job.request_stop(stop_request(seconds=5.0))
    third = cursor.advance(job, at(5))
    with pytest.raises(ValueError, match="missing"):
        apply(second, copy, at(1002))
    for update in (first, second, second, third):
        apply(update, copy, at(1002))
    assert list(copy.events) == list(job.events)
    assert (copy.tokens, copy.prompt_tokens, copy.state, copy.phase) == (
        [5, 6],
        (1, 2, 3),
        job.state,
        job.phase,
    )
    assert copy.stop is not None
    assert copy.stop.accepted_at == 1005.0
    times = ("accepted_at", "queue_ms", "first_token_ms", "decode_time_ms")
    assert {name: record_of(copy)[name] for name in times} == {name: record_of(job)[name] for name in times}
    restored = queued_job(run=3)
    restore(whole(copy, at(1006)), restored, at(500))
    assert (restored.tokens, restored.state.value, restored.stop) == ([5, 6], "queued", None)
    assert restored.deadline - 500 == pytest.approx(copy.deadline - 1006)


def test_metrics_and_records_of_several_workers_are_shown_as_one() -> None:
    """Each sample says whose it is; each family has one head. A job counts once."""
    text = merged_metrics([("w1", Metrics().render()), ("w2", Metrics().render())]).decode()
    assert text.count("# TYPE worker_tokens_generated_total counter") == 1
    assert 'worker_tokens_generated_total{worker_id="w2"} 0.0' in text
    assert 'worker_refusals_total{worker_id="w1",code="DRAINING"} 0.0' in text
    old, live = queued_job("a"), running_job("b")
    ended = running_job("b")
    ended.request_stop(stop_request())
    ended.engine_lost(at(3))
    merged = merged_records([[record_of(ended)], [record_of(live), record_of(old)]], 10)
    assert [(record["job_id"], record["ended_ms"]) for record in merged][-1] == ("b", None)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--api-key-file", "/no/such/keys"], "/no/such/keys"),
        (["--port", "{taken}"], "required a free address"),
    ],
)
def test_a_fleet_that_cannot_start_says_so_in_one_line(options: list[str], line: str) -> None:
    """Before anything of Ray is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        given = [option.format(taken=taken.getsockname()[1]) for option in options]
        command = [sys.executable, "-m", "worker_orcd", "fleet", "--port", str(free_port()), *given]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert line in done.stderr
