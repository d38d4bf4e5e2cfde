"""`--exact` refuses, in one line that says why, each model whose streams depend on what runs beside them (G6).

What it takes is byte-identical beside aborts (`test_aborts.py`).
"""

import ctypes
import subprocess
import sys
from pathlib import Path

import llama_cpp.llama_cpp as lib
import pytest

from tests.models.engine import TinyEngine
from tests.models.matrix import CASES, Case
from tests.tiny import TinyModels
from worker_orcd.engine.exactness import require_exactness
from worker_orcd.engine.model import ModelLoadError
from worker_orcd.testing.harness import free_port


def refusal(path: Path, parallel: int = 4) -> str | None:
    """Why loading with `--exact` and the self-check refuse the model; None: streams are exact."""
    try:
        engine = TinyEngine(path, exact=True, parallel=parallel, cells=parallel * 256)
    except ModelLoadError as error:
        return str(error)
    try:
        require_exactness(engine.model, str(path), lambda: None)
        assert engine.cells_held() == [0] * parallel
    except ModelLoadError as error:
        return str(error)
    finally:
        engine.close()
    return None


def check_refusal(said: str | None, path: Path, kind: str) -> None:
    """One line, which names the file, the option and the kind of model."""
    assert said is not None
    assert said.startswith(f"{path}: --exact refused: ")
    assert kind in said
    assert "\n" not in said


IN_THE_NIGHT = ("qwen3moe", "qwen3next", "jamba", "lfm2")
"""The deep lane tries others that are refused, or taken, for the same reason."""
KINDS = [
    pytest.param(case, marks=[pytest.mark.nightly] if case.name in IN_THE_NIGHT else []) for case in CASES
]


@pytest.mark.parametrize("case", KINDS, ids=str)
def test_a_model_is_refused_if_and_only_if_its_streams_are_not_exact(
    case: Case, tiny_models: TinyModels
) -> None:
    """Every kind of memory, with experts and without. The scores alone mostly do not show what is found here."""
    path = tiny_models.path(case.name, **case.metadata)
    said = refusal(path)
    if case.refused:
        check_refusal(said, path, case.refused)
    else:
        assert said is None


@pytest.mark.parametrize(
    "kind",
    ["F32", pytest.param("F16", marks=pytest.mark.nightly), pytest.param("BF16", marks=pytest.mark.nightly)],
)
def test_weights_that_are_not_quantized_are_refused_by_their_type(tiny_models: TinyModels, kind: str) -> None:
    """Their products take one path for a single row and another for several."""
    path = tiny_models.path("llama", kind)
    check_refusal(refusal(path), path, f"the model has {kind} weights (blk.0.attn_q.weight)")


@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        ("Q4_0", None),
        pytest.param("Q4_1", None, marks=pytest.mark.nightly),
        pytest.param("Q5_0", None, marks=pytest.mark.nightly),
        pytest.param("Q5_1", None, marks=pytest.mark.nightly),
        ("IQ4_NL", None),
        pytest.param("Q2_K", "Q2_K", marks=pytest.mark.nightly),
        pytest.param("Q3_K_M", "Q3_K", marks=pytest.mark.nightly),
        ("Q4_K_M", "Q4_K"),
        pytest.param("Q5_K_M", "Q5_K", marks=pytest.mark.nightly),
        ("Q6_K", "Q6_K"),
        pytest.param("IQ4_XS", "IQ4_XS", marks=pytest.mark.nightly),
    ],
)
def test_weights_are_refused_if_and_only_if_their_type_is_not_exact(
    tiny_models: TinyModels, tmp_path: Path, kind: str, refused: str | None
) -> None:
    """As llama.cpp's own quantizer makes them."""
    given = lib.llama_model_quantize_default_params()
    given.ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{kind}")
    given.nthread = 1
    path = tmp_path / f"{kind}.gguf"
    source = str(tiny_models.path("llama", "F32")).encode()
    assert lib.llama_model_quantize(source, str(path).encode(), ctypes.byref(given)) == 0
    said = refusal(path)
    if refused:
        check_refusal(said, path, f"the model has {refused} weights (blk.0.attn_q.weight)")
    else:
        assert said is None


@pytest.mark.parametrize("parallel", [1, 2])
def test_few_sequences_are_enough_to_find_it(tiny_models: TinyModels, parallel: int) -> None:
    """Even with a single sequence: after a death its run is requeued and computes its rows beside each other."""
    path = tiny_models.path("llama-moe")
    check_refusal(refusal(path, parallel), path, "a mixture of experts whose router has F32 weights")


@pytest.mark.parametrize("name", ["llama-moe", pytest.param("deepseek2", marks=pytest.mark.nightly)])
def test_the_worker_ends_with_one_line(tiny_models: TinyModels, name: str) -> None:
    """Before it serves any job; never because of cells."""
    (case,) = (case for case in CASES if case.name == name)
    path = tiny_models.path(case.name, **case.metadata)
    given = ["--model", str(path), "--exact", "--parallel", "4", "--context-length", "2048", "--threads", "1"]
    result = subprocess.run(
        [sys.executable, "-m", "worker_orcd", "--port", str(free_port()), *given],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    check_refusal(last.removeprefix("worker-orcd: MODEL_LOAD_FAILED: "), path, case.refused)
