"""The sampler against a reference in numpy, on logits of its own: without a model."""

import ctypes
from collections import Counter
from typing import Any

import llama_cpp.llama_cpp as llama
import numpy as np
from hypothesis import given, strategies as st
from numpy.typing import NDArray

from worker_orcd.engine.sampler import LlamaSampler
from worker_orcd.sampling import PENALTY_WINDOW, SAMPLERS, SamplingParams

VOCABULARY = 24
END = 3
Logits = NDArray[np.float32]


class Library:
    """llama.cpp's samplers over logits that a test gives: only what needs a model's context is made here."""

    def __init__(self, logits: Logits) -> None:
        self.scores = logits.copy()
        self.left: dict[int, float] = {}
        """The candidates of the last draw: tokens and their probabilities."""

    def __getattr__(self, name: str) -> Any:
        return getattr(llama, name)

    def llama_get_logits_ith(self, _context: object, _row: int) -> Any:
        """The address of the logits."""
        return self.scores.ctypes.data_as(ctypes.POINTER(ctypes.c_float))

    def llama_sampler_sample(self, chain: Any, _context: object, _row: int) -> int:
        """As llama.cpp does: the chain on all tokens, then the chosen one is accepted."""
        data = (llama.llama_token_data * VOCABULARY)(
            *((token, float(score), 0.0) for token, score in enumerate(self.scores))
        )
        left = llama.llama_token_data_array(data, VOCABULARY, -1, False)
        llama.llama_sampler_apply(chain, ctypes.byref(left))
        self.left = {data[n].id: data[n].p for n in range(left.size)}
        token: int = data[left.selected].id
        llama.llama_sampler_accept(chain, token)
        return token


def reference(
    logits: Logits, params: SamplingParams, history: list[int], index: int
) -> tuple[NDArray[np.float64], list[float]]:
    """The probability of each token, and how close each filter is to a different decision."""
    scores = logits.astype(np.float64)
    margins: list[float] = [1.0]
    if index < params.min_tokens:
        scores[[END, *params.stop_token_ids]] = -np.inf
    for token, bias in (params.logit_bias or {}).items():
        scores[token] += bias
    left = np.arange(len(scores))
    for name in SAMPLERS if params.samplers is None else params.samplers:
        left = left[np.argsort(-scores[left], kind="stable")]
        if name == "penalties":
            for token, times in Counter(history[-PENALTY_WINDOW:]).items():
                penalty = params.repetition_penalty
                scores[token] = scores[token] * penalty if scores[token] <= 0 else scores[token] / penalty
                scores[token] -= times * params.frequency_penalty + params.presence_penalty
        elif name == "top_k" and params.top_k:
            margins += _gap(scores, left, params.top_k)
            left = left[: params.top_k]
        elif name == "top_p" and params.top_p < 1.0:
            mass = np.cumsum(_softmax(scores[left]))
            margins.append(float(np.min(np.abs(mass - params.top_p))))
            left = left[: int(np.searchsorted(mass, params.top_p)) + 1]
        elif name == "min_p" and params.min_p > 0.0:
            below = scores[left] - (scores[left[0]] + np.log(params.min_p))
            margins.append(float(np.min(np.abs(below))))
            left = left[below >= 0]
        elif name == "temperature" and params.temperature < 1e-4:
            margins += _gap(scores, left, 1)
            left = left[:1]
        elif name == "temperature":
            scores /= params.temperature
    found = np.zeros(len(scores))
    found[left] = _softmax(scores[left])
    return found, margins


def _gap(scores: NDArray[np.float64], order: NDArray[np.int64], kept: int) -> list[float]:
    edge = scores[order[kept - 1 : kept + 1]]
    return [float(edge[0] - edge[1])] if len(edge) == 2 and np.isfinite(edge).all() else []


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(scores - scores.max())
    return np.asarray(weights / weights.sum())


TOKENS = st.integers(0, VOCABULARY - 1)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.one_of(st.just(0.0), st.floats(0.125, 2.0, width=32)),
    top_p=st.one_of(st.just(1.0), st.floats(0.125, 0.875, width=32)),
    top_k=st.integers(0, VOCABULARY),
    min_p=st.one_of(st.just(0.0), st.floats(0.015625, 1.0, width=32)),
    repetition_penalty=st.floats(0.5, 2.0, width=32),
    presence_penalty=st.floats(-2.0, 2.0, width=32),
    frequency_penalty=st.floats(-2.0, 2.0, width=32),
    logit_bias=st.one_of(st.none(), st.dictionaries(TOKENS, st.floats(-100, 100, width=32), max_size=5)),
    min_tokens=st.integers(0, 3),
    stop_token_ids=st.lists(TOKENS, max_size=3).map(tuple),
    samplers=st.one_of(
        st.none(), st.lists(st.sampled_from([*SAMPLERS, "xtc"]), unique=True, max_size=6).map(tuple)
    ),
    seed=st.integers(0, 2**64 - 1),
)
LOGITS = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).normal(0, 3, VOCABULARY).astype(np.float32)
)


def sampler_of(library: Library, params: SamplingParams, history: list[int]) -> LlamaSampler:
    """A sampler over these logits."""
    return LlamaSampler(library, None, VOCABULARY, params, history, ends=[END])


@given(LOGITS, PARAMS, st.lists(TOKENS, max_size=PENALTY_WINDOW + 6), st.integers(0, 4))
def test_a_draw_is_from_the_tokens_and_probabilities_of_the_reference(
    logits: Logits, params: SamplingParams, history: list[int], index: int
) -> None:
    """Every option alone and together, in the order of the contract."""
    probabilities, margins = reference(logits, params, history, index)
    library = Library(logits)
    sampler = sampler_of(library, params, history)
    token = sampler.draw(0, index)
    sampler.close()
    if min(margins) < 1e-3:
        return  # Whether the token at the edge is in depends on the last bits.
    assert probabilities[token] > 0
    if params.temperature > 0:
        drawn_from = np.array([library.left.get(n, 0.0) for n in range(VOCABULARY)])
        assert np.allclose(drawn_from, probabilities, atol=1e-4)


@given(LOGITS, PARAMS, st.lists(TOKENS, max_size=8), st.integers(1, 5))
def test_a_run_that_is_requeued_anywhere_draws_the_same_tokens(
    logits: Logits, params: SamplingParams, prompt: list[int], cut: int
) -> None:
    """A draw needs the logits, the tokens so far, the seed and its index: no state of the sampler that came before."""
    tokens = list(prompt)
    sampler = sampler_of(Library(logits), params, tokens)
    library = sampler._lib
    for index in range(6):
        library.scores[:] = np.roll(logits, index)
        tokens.append(sampler.draw(0, index))
    sampler.close()
    resumed = tokens[: len(prompt) + cut]
    again = sampler_of(Library(logits), params, resumed)
    for index in range(cut, 6):
        again._lib.scores[:] = np.roll(logits, index)
        resumed.append(again.draw(0, index))
    again.close()
    assert resumed == tokens
