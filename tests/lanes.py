"""Which lane a test runs in: quick (`make test`), deep (the rest of `make test-all`) or nightly (`make nightly`).

A test is quick unless it is listed here or marked `nightly`. `serial` is independent of the lane: such a test measures
time or needs the machine for itself, and runs alone. The quick lane has for each guarantee a test that fails when its
mechanism is broken (docs/traceability.md); what proves the same again, elsewhere or more often, is deep.

`tools/lane.sh` sets `LANE` to the lane that runs, and `GROUP` to `parallel` or `serial`. With `GROUP`, files without a
test of that lane and group are not even imported: importing all of them takes longer than most files' tests.
"""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

LANE = os.environ.get("LANE", "quick")
GROUP = os.environ.get("GROUP", "")

DEEP = (
    "browser",
    "clients",
    "docs",
    "faults",
    "fleet/test_joining.py",
    "fleet/test_ray.py",
    "fleet/test_scale.py::test_a_cancel_costs_as_much_in_a_large_fleet[64]",
    "fleet/test_succession.py",
    "soak",
    "integration/test_cancel.py::test_cancels_delay_a_neighbour_by_a_step_at_most[1]",
    "integration/test_cli_completion.py",
    "integration/test_cli_constrained.py",
    "integration/test_cli_wrong_types.py",
    "integration/test_constrained.py::test_a_bad_constraint_is_400_by_its_field",
    "integration/test_constrained.py::test_a_constrained_job_goes_on_after_its_engine_was_killed",
    "integration/test_constrained.py::test_hostile_grammars_hold_up_no_neighbour",
    "integration/test_deploy.py",
    "integration/test_execute.py::test_a_declared_giant_is_refused_before_it_is_sent",
    "integration/test_execute.py::test_a_prompt_that_kills_the_engine_takes_only_its_job_with_it",
    "integration/test_execute.py::test_an_idle_engine_that_hangs_is_noticed_too",
    "integration/test_forked.py::test_with_options_for_python_a_worker_gets_an_interpreter_of_its_own",
    "integration/test_embeddings.py::test_a_large_request_leaves_the_queue_to_others",
    "integration/test_grammars.py",
    "integration/test_hostile_template.py",
    "integration/test_infill.py::test_a_real_engine_computes_the_documented_prompt",
    "integration/test_infill.py::test_a_real_engine_samples_as_llama_vim_wants_it",
    "integration/test_mcp.py",
    "integration/test_model_file_fuzz.py",
    "integration/test_not_generative.py",
    "integration/test_observability.py",
    "integration/test_priority.py",
    "integration/test_progress.py",
    "integration/test_proxy.py",
    "integration/test_schema.py",
    "integration/test_shared_workers.py",
    "integration/test_shutdown.py::test_by_default_it_is_gone_within_five_seconds_even_if_the_engine_is_stopped",
    "integration/test_shutdown.py::test_it_is_gone_in_time_also_beside_a_reader_that_takes_nothing",
    "integration/test_streams.py::test_a_reader_that_takes_nothing_slows_nobody",
    "integration/test_streams.py::test_readers_of_an_ended_job_are_bounded_too",
    "integration/test_system_calls.py::test_published_templates_render_behind_the_filter",
    "integration/test_template_fuzz.py",
    "integration/test_traces.py",
    "models/test_embeddings.py",
    "models/test_exactness.py",
    "models/test_rounding.py",
    "models/test_worker.py",
    "real/test_constrained.py",
    "real/test_continuing.py",
    "real/test_tools.py",
    "real/test_demo.py",
    "real/test_exact.py",
    "real/test_exact_storm.py::test_streams_in_a_storm_are_bitwise_those_of_the_same_jobs_alone[bundled]",
    "real/test_generating.py::test_a_scored_prompt_has_the_scores_that_generating_it_had",
    "real/test_generating.py::test_every_way_of_sampling_works",
    "real/test_generating.py::test_no_broken_characters",
    "real/test_second_model.py",
    "real/test_stopping.py::test_a_cancel_delays_a_neighbour_by_a_step_at_most[prefilling]",
    "real/test_stopping.py::test_computing_stops_in_time[starting-25-prefill]",
    "real/test_stopping.py::test_computing_stops_in_time[ending-20-decode]",
    "real/test_stopping.py::test_steps_are_done_beside_steady_cancels",
    "real/test_waiting.py",
    "unit/test_conversations.py",
)
"""Folders, files and tests (with or without parameters): programs of others, many faults, many jobs, many models, the
documentation's examples, and repeated proofs."""

QUICK_MODELS = {"llama", "mamba", "jamba", "gemma3"}
"""Of each kind of memory one: attention, recurrent, hybrid, sliding windows. All others are deep."""

NIGHTLY_MODELS = {
    *("llama-moe", "gemma2", "cohere2", "exaone4", "rwkv6", "granitehybrid", "qwen35"),
    *("kimi-linear", "lfm2moe", "nemotron_h", "qwen35moe", "qwen3moe", "mamba2", "gemma3n"),
    *("qwen3-embedding", "nomic-bert"),
}
"""More models of kinds that the deep lane tries already: experts, MLA, windows, states, hybrids. `make models` aborts
steps of all models."""

SERIAL = (
    "fleet/test_ray.py",
    "fleet/test_ray_whole.py",
    "fleet/test_ray_crowd.py",
    "fleet/test_cluster.py",
    "fleet/test_embeddings.py",
    "browser/test_fleet.py",
    "fleet/test_real.py",
    "faults/test_busy_machine.py",
    "faults/test_crowds.py",
    "faults/test_starvation.py::test_a_starved_engine_is_not_killed",
    "faults/test_starvation.py::test_a_starved_process_waits_for_a_cpu",
    "faults/test_starvation.py::test_a_stopped_engine_is_found_while_others_starve_the_machine",
    "features",
    "real/test_demo.py",
    "real/test_second_model.py::test_computing_stops_in_time",
    "real/test_stopping.py::test_a_cancel_delays_a_neighbour_by_a_step_at_most",
    "real/test_stopping.py::test_computing_stops_in_time",
    "real/test_stopping.py::test_job_after_a_cancelled_long_prefill_starts_as_on_an_idle_worker",
    "real/test_stopping.py::test_long_prompt_does_not_stall_streams_that_decode",
    "real/test_waiting.py",
    "integration/test_cancel.py::test_cancels_delay_a_neighbour_by_a_step_at_most",
    "integration/test_cancel.py::test_computing_stops_within_100_ms_also_in_the_middle_of_a_long_step",
    "integration/test_cancel.py::test_where_steps_cannot_be_aborted_they_are_short_enough_to_wait_for",
    "integration/test_disconnect.py::test_leaving_an_idle_stream_in_the_middle_of_a_long_step_stops_the_job",
    "integration/test_disconnect.py::test_leaving_during_decode_stops_the_job",
    "integration/test_disconnect.py::test_leaving_during_prefill_stops_the_job",
    "integration/test_disconnect.py::test_leaving_the_queue_gives_the_place_back",
    "integration/test_half_close.py::test_a_client_that_closes_is_noticed_promptly",
    "integration/test_half_close.py::test_a_client_that_half_closes_and_then_leaves_is_noticed_too",
    "integration/test_prefix_timing.py",
    "integration/test_proxy.py::test_a_client_that_leaves_during_decode_is_noticed",
    "integration/test_proxy.py::test_a_client_that_leaves_during_prefill_is_noticed",
    "integration/test_proxy.py::test_a_client_that_leaves_the_queue_is_noticed",
    "integration/test_shutdown.py::test_by_default_it_is_gone_within_five_seconds_even_if_the_engine_is_stopped",
    "integration/test_shutdown.py::test_it_is_gone_in_time_also_beside_a_reader_that_takes_nothing",
    "integration/test_streams.py::test_a_reader_that_takes_nothing_slows_nobody",
)
"""Folders, files and tests that measure time, or start so much that another test beside them would be disturbed."""

TOGETHER = (
    "faults/test_engine.py",
    "real/test_constrained.py",
    "real/test_exact.py",
    "real/test_generating.py",
    "real/test_stopping.py",
    "real/test_tools.py",
)
"""Files whose parallel tests run in one process, one after the other, and share its real workers."""

FIRST = (
    *TOGETHER,
    "docs/test_examples.py",
    "integration/test_hostile_template.py",
    "real",
    "clients/test_litellm.py",
    "models/test_exactness.py",
)
"""Files and folders that take longest: begun last, they would run alone in the end."""

SAMPLED = (
    "integration/test_schema.py",
    "property",
    "simulation/test_histories.py::test_a_hostile_key_breaks_no_promise_to_the_others",
    "simulation/test_histories.py::test_histories_keep_every_guarantee",
    "unit/test_model_file.py::test_any_bytes_after_a_right_header_give_a_model_or_a_refusal",
    "unit/test_model_file.py::test_flipped_bytes_give_a_model_or_a_refusal",
    "unit/test_planner.py::test_no_step_breaks_the_rules",
    "unit/test_planner.py::test_the_oldest_prompt_never_gets_less_than_half",
    "unit/test_planner.py::test_the_prediction_comes_to_track_the_machine",
    "unit/test_text.py::test_no_part_of_a_stop_sequence_is_ever_shown",
    "unit/test_text.py::test_the_output_is_the_text_before_the_earliest_stop_sequence",
)
"""Tests of random histories and inputs, which run again in the nightly lane, with twenty times the examples."""

_TESTS = Path(__file__).parent
_MODELS = "models/"

# How fast examples are made says something of the machine only, and these machines are shared.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])


def examples(quick: int) -> int:
    """How many examples a test tries that is listed in `SAMPLED`."""
    return quick * (20 if LANE == "nightly" else 1)


def _listed(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith((f"{place}/", f"{place}::", f"{place}[")) for place in places)


def is_deep(name: str) -> bool:
    """Whether a folder, a file or a test (`unit/test_lanes.py::test_it[1]`) is listed as deep in whole."""
    return _listed(name, DEEP)


def may_run(name: str, lane: str = LANE, group: str = GROUP) -> bool:
    """Whether a folder or a file may hold tests of a lane's group. Without a group every file may."""
    if not group:
        return True
    if lane == "quick" and is_deep(name):
        return False
    if lane == "deep" and not _meets(name, (*DEEP, _MODELS.rstrip("/"))):
        return False
    return _meets(name, SERIAL) if group == "serial" else not _listed(name, SERIAL)


def scope(name: str) -> str:
    """What one process runs without a break: a file, or several that share what they start."""
    file = name.partition("::")[0]
    return TOGETHER[0] if _listed(file, TOGETHER) else file


def turn(name: str) -> int:
    """When a test's scope begins, beside others; those of equal turn in the order of their names."""
    return next((n for n, place in enumerate(FIRST) if _listed(name, (place,))), len(FIRST))


def _meets(name: str, places: tuple[str, ...]) -> bool:
    """Whether a folder or a file is in one of these places or holds one."""
    return _listed(name, places) or any(place.startswith((f"{name}/", f"{name}::")) for place in places)


def ignored(path: Path) -> bool:
    """Whether a folder or a file of tests has none of the lane and group that run."""
    return path.is_relative_to(_TESTS) and path != _TESTS and not may_run(path.relative_to(_TESTS).as_posix())


def _model(item: pytest.Item) -> str | None:
    """The model that it tries, if it is a test of many."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    case = params.get("case", params.get("served"))
    return None if case is None else str(case)


def _in_depth(item: pytest.Item, name: str) -> bool:
    """Whether it tries a model that stands for no kind of memory."""
    return name.startswith(_MODELS) and _model(item) not in {None, *QUICK_MODELS}


def _in_the_night(item: pytest.Item, name: str) -> bool:
    """Whether it tries one more model of a kind that the deep lane tries already."""
    model = _model(item)
    if not name.startswith(_MODELS) or model is None:
        return False
    return model in NIGHTLY_MODELS or (
        name.startswith("models/test_rounding.py") and model not in QUICK_MODELS
    )


def assign(item: pytest.Item) -> None:
    """Mark a test with its lane."""
    if not item.path.is_relative_to(_TESTS):
        return
    name = f"{item.path.relative_to(_TESTS).as_posix()}::{item.nodeid.partition('::')[2]}"
    if _in_the_night(item, name):
        item.add_marker(pytest.mark.nightly)
    if (is_deep(name) or _in_depth(item, name)) and not item.get_closest_marker("nightly"):
        item.add_marker(pytest.mark.deep)
    if _listed(name, SAMPLED):
        item.add_marker(pytest.mark.sampled)
    if _listed(name, SERIAL):
        item.add_marker(pytest.mark.serial)
