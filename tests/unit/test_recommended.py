"""What a model's file recommends, as fields of a job."""

import pytest

from worker_orcd.worker.recommended import recommended_sampling


def test_recommendations_become_fields_of_a_job() -> None:
    """Under the names of `POST /execute`; keys without such a field are left out."""
    in_file = {"temp": 0.6, "top_k": 20, "top_p": 0.95, "penalty_repeat": 1.05, "mirostat": 2}
    assert recommended_sampling(in_file) == {
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "repetition_penalty": 1.05,
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 7.5])
def test_what_no_job_may_ask_for_is_left_out(value: float) -> None:
    """A job with such a value would be refused."""
    assert recommended_sampling({"temp": value, "top_p": 0.9}) == {"top_p": 0.9}
