"""Draws tokens with llama.cpp's samplers, configured by `SamplingParams`."""

import ctypes
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker_orcd.engine.counter_rng import draw_seed
from worker_orcd.sampling import PENALTY_WINDOW, SAMPLERS, SamplingParams

Mask = Callable[[NDArray[np.float32], int], None]
"""Forbids tokens: sets logits to -inf in place, before the token with this index is drawn."""
_COLDEST = 1e-4
"""Lower temperatures are greedy: logits divided by them would overflow a float."""
_SMALLEST_PENALTY = 1e-6
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""llama_token_data."""


class LlamaSampler:
    """Masks, followed by a chain of llama.cpp's samplers: logit bias, the `samplers` in their order, and the draw.

    The chain is kept; the drawing sampler is created for each token, seeded by (seed, index).
    """

    def __init__(
        self,
        lib: Any,
        context: Any,
        vocab_size: int,
        sampling: SamplingParams,
        history: list[int],
        *,
        ends: Iterable[int] = (),
    ) -> None:
        """Build the chain.

        Args:
            lib: `llama_cpp`'s low-level API.
            context: has the logits of the last step.
            vocab_size: number of tokens in the vocabulary.
            sampling: the run's parameters.
            history: the run's tokens so far, prompt included.
            ends: end-of-generation tokens.
        """
        self._lib = lib
        self._context = context
        self._vocab_size = vocab_size
        self._seed = sampling.seed or 0
        self._cold = sampling.temperature < _COLDEST
        self._greedy = self._cold and sampling.samplers is None
        self.masks: list[Mask] = []
        """Applied in this order before each draw. At least one token must stay allowed."""
        if sampling.min_tokens:
            self.masks.append(_forbid_until(sampling.min_tokens, [*ends, *sampling.stop_token_ids]))
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for link in self._links(sampling):
            lib.llama_sampler_chain_add(self._chain, link)
        for token in history[-PENALTY_WINDOW:]:
            lib.llama_sampler_accept(self._chain, token)

    def _links(self, sampling: SamplingParams) -> Iterable[Any]:
        """The enabled samplers of the chain, in order."""
        lib = self._lib
        if sampling.logit_bias:
            biases = (lib.llama_logit_bias * len(sampling.logit_bias))(*sampling.logit_bias.items())
            yield lib.llama_sampler_init_logit_bias(self._vocab_size, len(biases), biases)
        if self._greedy:
            yield from self._link("penalties", sampling)
            yield lib.llama_sampler_init_greedy()
            return
        for name in SAMPLERS if sampling.samplers is None else sampling.samplers:
            yield from self._link(name, sampling)

    def _link(self, name: str, sampling: SamplingParams) -> Iterable[Any]:
        """The sampler with this name, if it is enabled."""
        lib = self._lib
        penalties = (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        if name == "penalties" and penalties != (1.0, 0.0, 0.0):
            repetition, frequency, presence = penalties
            repetition = max(repetition, _SMALLEST_PENALTY)
            yield lib.llama_sampler_init_penalties(
                self._vocab_size, PENALTY_WINDOW, repetition, frequency, presence
            )
        elif name == "top_k" and sampling.top_k > 0:
            yield lib.llama_sampler_init_top_k(sampling.top_k)
        elif name == "top_p" and sampling.top_p < 1.0:
            yield lib.llama_sampler_init_top_p(sampling.top_p, 1)
        elif name == "min_p" and sampling.min_p > 0.0:
            yield lib.llama_sampler_init_min_p(sampling.min_p, 1)
        elif name == "temperature":
            yield lib.llama_sampler_init_temp(0.0 if self._cold else sampling.temperature)
        elif name == "infill":
            vocabulary = lib.llama_model_get_vocab(lib.llama_get_model(self._context))
            yield lib.llama_sampler_init_infill(vocabulary)

    def draw(self, row: int, index: int, allowed: bytes | None = None) -> int:
        """Draw a token.

        Args:
            row: the row of the last step to draw from.
            index: the token's number in the run's output.
            allowed: token *t* may be drawn if bit *t* is set, the lowest bit of a byte first; None: all may.
        """
        lib, chain = self._lib, self._chain
        if self.masks:
            logits = self.logits(row)
            for mask in self.masks:
                mask(logits, index)
        if self._greedy:
            return self._sample(row, allowed)
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(draw_seed(self._seed, index)))
        token = self._sample(row, allowed)
        last = lib.llama_sampler_chain_n(chain) - 1
        lib.llama_sampler_free(lib.llama_sampler_chain_remove(chain, last))
        return token

    def _sample(self, row: int, allowed: bytes | None) -> int:
        """Apply the chain. None of its samplers receives a token that is not allowed."""
        lib, chain = self._lib, self._chain
        if allowed is None:
            return int(lib.llama_sampler_sample(chain, self._context, row))
        bits = np.unpackbits(np.frombuffer(allowed, np.uint8), bitorder="little")[: self._vocab_size]
        ids = np.flatnonzero(bits)
        scores = self.logits(row)[ids]
        if not np.isfinite(scores).any():
            scores = np.zeros_like(
                scores
            )  # `min_tokens` forbids every token that the grammar allows: the grammar takes precedence.
        candidates = np.zeros(len(ids), _CANDIDATE)
        candidates["id"], candidates["logit"] = ids, scores
        data = ctypes.cast(candidates.ctypes.data, lib.llama_token_data_p)
        array = lib.llama_token_data_array(data=data, size=len(ids), selected=-1, sorted=False)
        lib.llama_sampler_apply(chain, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        lib.llama_sampler_accept(chain, token)
        return token

    def logits(self, row: int) -> NDArray[np.float32]:
        """The row's logits in llama.cpp's memory: changing them changes the draw. Valid until the next step."""
        found = self._lib.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(found, shape=(self._vocab_size,))

    def close(self) -> None:
        """Free the chain."""
        if self._chain is not None:
            self._lib.llama_sampler_free(self._chain)
            self._chain = None


def _forbid_until(number: int, tokens: list[int]) -> Mask:
    """A mask that forbids these tokens before the token with this number."""

    def mask(logits: NDArray[np.float32], index: int) -> None:
        if index < number:
            logits[tokens] = -np.inf

    return mask
