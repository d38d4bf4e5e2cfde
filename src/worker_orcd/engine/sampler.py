"""Draws tokens with llama.cpp's samplers, as `SamplingParams` says."""

from typing import Any

from worker_orcd.engine.counter_rng import draw_seed
from worker_orcd.sampling import SamplingParams

PENALTY_WINDOW = 64
"""Tokens that the penalties look back on, prompt included (contract, section 2)."""
_COLDEST = 1e-4
"""Temperatures below are greedy: logits divided by them leave the range of a float."""
_SMALLEST_PENALTY = 1e-6


class LlamaSampler:
    """A chain of llama.cpp's samplers: penalties, top-k, top-p, temperature, then the draw.

    The chain is kept; the draw is made anew for each token, seeded by (seed, index).
    """

    def __init__(
        self, lib: Any, context: Any, vocab_size: int, sampling: SamplingParams, history: list[int]
    ) -> None:
        """Build the chain for a run whose tokens so far are `history`. `lib` is `llama_cpp`'s low-level API."""
        self._lib = lib
        self._context = context
        self._seed = sampling.seed or 0
        self._greedy = sampling.temperature < _COLDEST
        chain = self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        add = lib.llama_sampler_chain_add
        if sampling.repetition_penalty != 1.0:
            penalty = max(sampling.repetition_penalty, _SMALLEST_PENALTY)
            add(chain, lib.llama_sampler_init_penalties(vocab_size, PENALTY_WINDOW, penalty, 0.0, 0.0))
        if self._greedy:
            add(chain, lib.llama_sampler_init_greedy())
        else:
            if sampling.top_k > 0:
                add(chain, lib.llama_sampler_init_top_k(sampling.top_k))
            if sampling.top_p < 1.0:
                add(chain, lib.llama_sampler_init_top_p(sampling.top_p, 1))
            add(chain, lib.llama_sampler_init_temp(sampling.temperature))
        for token in history[-PENALTY_WINDOW:]:
            lib.llama_sampler_accept(chain, token)

    def draw(self, row: int, index: int) -> int:
        """Draw the run's token number `index` from the last step's row `row`."""
        lib, chain = self._lib, self._chain
        if self._greedy:
            return int(lib.llama_sampler_sample(chain, self._context, row))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(draw_seed(self._seed, index)))
        token = lib.llama_sampler_sample(chain, self._context, row)
        last = lib.llama_sampler_chain_n(chain) - 1
        lib.llama_sampler_free(lib.llama_sampler_chain_remove(chain, last))
        return int(token)

    def close(self) -> None:
        """Free the chain."""
        if self._chain is not None:
            self._lib.llama_sampler_free(self._chain)
            self._chain = None
