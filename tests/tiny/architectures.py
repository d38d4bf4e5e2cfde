"""The models by name: architecture, vocabulary and the metadata in which it differs from the common one."""

from typing import Any

from tests.tiny.vocabularies import VOCABULARIES, Metadata

N_EMBD, N_HEAD, N_KV, N_FF, N_LAYER, N_CTX = 256, 4, 2, 768, 6, 32768


def _moe(experts: int = 4, used: int = 2, ff: int = 192) -> Metadata:
    return {
        "expert_count": experts,
        "expert_used_count": used,
        "expert_feed_forward_length": ff,
        "expert_shared_feed_forward_length": ff,
        "expert_shared_count": 1,
        "expert_gating_func": 2,
        "expert_weights_scale": 1.0,
        "expert_weights_norm": True,
        "interleave_moe_layer_step": 2,
        "expert_group_scale": 1.0,
        "experts_per_group": 1,
        "expert_latent_length": ff,
        "leading_dense_block_count": 1,
    }


def _swa(window: int = 128, pattern: int = 2, **more: Any) -> Metadata:
    return {"attention.sliding_window": window, "attention.sliding_window_pattern": pattern, **more}


def _ssm(
    inner: int = 2 * N_EMBD, state: int = 16, rank: int = N_EMBD // 16, groups: int = 1, **more: Any
) -> Metadata:
    return {
        "ssm.conv_kernel": 4,
        "ssm.inner_size": inner,
        "ssm.state_size": state,
        "ssm.time_step_rank": rank,
        "ssm.group_count": groups,
        **more,
    }


def _some_attention(every: int = 3) -> list[int]:
    """`head_count_kv` by layer: 0 where the layer is recurrent."""
    return [N_KV if il % every == every - 1 else 0 for il in range(N_LAYER)]


_MLA = {
    "attention.q_lora_rank": 128,
    "attention.kv_lora_rank": 64,
    "attention.key_length": 64 + 16,
    "attention.value_length": 64,
    "attention.key_length_mla": 48,
    "attention.value_length_mla": 32,
    "rope.dimension_count": 16,
    "attention.head_count_kv": 1,
}
_DELTA_NET = _ssm(inner=256, state=64, rank=4, groups=2, full_attention_interval=3)
_DELTA_NET |= {"rope.dimension_sections": [8, 8, 8, 8], "rope.dimension_count": 64}

MODELS: dict[str, tuple[str, str, Metadata]] = {
    # plain attention
    "llama": ("llama", "bpe", {}),
    "llama-moe": ("llama", "bpe", _moe()),
    "qwen2": ("qwen2", "bpe", {}),
    "qwen3": ("qwen3", "bpe", {}),
    "qwen3moe": ("qwen3moe", "bpe", _moe()),
    # By "phi3" in a name llama.cpp expects the special tokens of Phi-3.
    "phi3": ("phi3", "bpe", {".general.name": "tiny"}),
    "gpt2": ("gpt2", "bpe", {"attention.head_count_kv": N_HEAD}),
    "command-r": ("command-r", "bpe", {"logit_scale": 1.0}),
    "glm4": ("glm4", "bpe", {}),
    "smollm3": ("smollm3", "bpe", {}),
    # MLA, and sparse attention with an indexer
    "deepseek2": ("deepseek2", "bpe", _moe() | _MLA),
    "deepseek32": (
        "deepseek32",
        "bpe",
        _moe()
        | _MLA
        | {
            "attention.kv_lora_rank": 512,
            "attention.key_length": 576,
            "attention.value_length": 512,
            "attention.key_length_mla": 192,
            "attention.value_length_mla": 128,
            "rope.dimension_count": 64,
            "attention.head_count": 1,
            "attention.indexer.head_count": 64,
            "attention.indexer.key_length": 128,
            "attention.indexer.top_k": 2048,
        },
    ),
    # sliding windows
    "gemma2": ("gemma2", "spm", _swa(attn_logit_softcapping=50.0, final_logit_softcapping=30.0)),
    "gemma3": ("gemma3", "spm", _swa(pattern=3)),
    "gemma3n": (
        "gemma3n",
        "spm",
        _swa(pattern=5)
        | {
            "block_count": 22,
            "embedding_length": 64,
            "feed_forward_length": 96,
            "attention.head_count": 1,
            "attention.head_count_kv": 1,
            "attention.key_length": 64,
            "attention.value_length": 64,
            "attention.shared_kv_layers": 2,
            "embedding_length_per_layer_input": 32,
            "altup.num_inputs": 4,
            "altup.active_idx": 0,
        },
    ),
    "gpt-oss": ("gpt-oss", "bpe", _moe() | _swa()),
    "cohere2": ("cohere2", "bpe", _swa(pattern=3, logit_scale=1.0)),
    "llama4": (
        "llama4",
        "bpe",
        _moe() | {"block_count": 4, "attention.chunk_size": 256, "attention.sliding_window": 256},
    ),
    "phi3-swa": ("phi3", "bpe", {".general.name": "tiny", "attention.sliding_window": 128}),
    "exaone4": ("exaone4", "bpe", {"attention.sliding_window": 128}),
    # recurrent
    "mamba": ("mamba", "bpe", _ssm()),
    "mamba2": ("mamba2", "bpe", _ssm(state=64, rank=8, groups=1)),
    "rwkv6": (
        "rwkv6",
        "rwkv",
        {
            "wkv.head_size": 64,
            "time_mix_extra_dim": 32,
            "time_decay_extra_dim": 64,
            "rescale_every_n_layers": 0,
            "token_shift_count": 2,
            "attention.head_count": 0,
            "attention.head_count_kv": 0,
        },
    ),
    "rwkv7": (
        "rwkv7",
        "rwkv",
        {
            "wkv.head_size": 64,
            "attention.decay_lora_rank": 64,
            "attention.iclr_lora_rank": 64,
            "token_shift_count": 2,
            "attention.value_residual_mix_lora_rank": 32,
            "attention.gate_lora_rank": 64,
            "attention.head_count": 0,
            "attention.head_count_kv": 0,
        },
    ),
    # hybrid
    "jamba": ("jamba", "spm", _ssm() | _moe() | {"attention.head_count_kv": _some_attention()}),
    "falcon-h1": ("falcon-h1", "bpe", _ssm(state=64, rank=8, groups=1)),
    "granitehybrid": (
        "granitehybrid",
        "bpe",
        _ssm(state=64, rank=8, groups=1)
        | _moe()
        | {
            "attention.head_count_kv": _some_attention(),
            "attention.scale": 0.125,
            "embedding_scale": 1.0,
            "residual_scale": 1.0,
            "logit_scale": 1.0,
        },
    ),
    "lfm2": ("lfm2", "bpe", {"attention.head_count_kv": _some_attention(), "shortconv.l_cache": 3}),
    "lfm2moe": (
        "lfm2moe",
        "bpe",
        _moe() | {"attention.head_count_kv": _some_attention(), "shortconv.l_cache": 3},
    ),
    "nemotron_h": (
        "nemotron_h",
        "bpe",
        _ssm(state=64, rank=8, groups=1)
        | {"attention.head_count_kv": [0, 0, 0, N_KV, 0, 0], "feed_forward_length": [0, N_FF, 0, 0, N_FF, 0]},
    ),
    "qwen3next": ("qwen3next", "bpe", _moe() | _DELTA_NET),
    "qwen35": ("qwen35", "bpe", _DELTA_NET),
    "qwen35moe": ("qwen35moe", "bpe", _moe() | _DELTA_NET),
    "kimi-linear": (
        "kimi-linear",
        "bpe",
        _moe()
        | _MLA
        | {"attention.head_count_kv": [0, 0, 1, 0, 0, 1], "kda.head_dim": 64, "ssm.conv_kernel": 4},
    ),
    "plamo2": (
        "plamo2",
        "plamo2",
        _ssm(state=16, rank=8, groups=0)
        | {
            "attention.head_count": [0, N_HEAD] * 3,
            "attention.head_count_kv": [0, N_KV] * 3,
            "attention.key_length": 64,
            "attention.value_length": 64,
        },
    ),
    # what generates no text by the next token
    "bert": ("bert", "wpm", {"attention.causal": False, "pooling_type": 1, "context_length": 512}),
    "nomic-bert": (
        "nomic-bert",
        "wpm",
        {"attention.causal": False, "pooling_type": 1, "context_length": 2048},
    ),
    "gemma-embedding": ("gemma-embedding", "spm", _swa(pattern=3) | {"pooling_type": 1}),
    "qwen3-embedding": ("qwen3", "bpe", {"pooling_type": 3}),
    "t5": (
        "t5",
        "ugm",
        {
            "attention.relative_buckets_count": 32,
            "decoder_start_token_id": 0,
            "attention.head_count_kv": N_HEAD,
            "attention.key_length": 64,
            "attention.value_length": 64,
        },
    ),
    "t5encoder": (
        "t5encoder",
        "ugm",
        {
            "attention.relative_buckets_count": 32,
            "attention.head_count_kv": N_HEAD,
            "attention.key_length": 64,
            "attention.value_length": 64,
        },
    ),
    "llada": ("llada", "bpe", {"attention.causal": False}),
    "dream": ("dream", "bpe", {"attention.causal": False}),
    # oddities of plain ones
    "llama-spm": ("llama", "spm", {}),
    "llama-ugm": ("llama", "ugm", {}),
    "llama-rwkv": ("llama", "rwkv", {}),
    "llama-plamo2": ("llama", "plamo2", {}),
    "llama-wpm": ("llama", "wpm", {}),
    "llama-no-vocab": ("llama", "none", {"vocab_size": 512}),
    "llama-no-bos": (
        "llama",
        "bpe",
        {".tokenizer.ggml.add_bos_token": False, ".tokenizer.ggml.bos_token_id": None},
    ),
    "llama-ctx128": ("llama", "bpe", {"context_length": 128}),
    "llama-ctx1M": ("llama", "bpe", {"context_length": 1048576}),
}


def keys_of(name: str) -> Metadata:
    """All the metadata of the model with this name."""
    arch, vocabulary, own = MODELS[name]
    words = VOCABULARIES[vocabulary]()
    common = {
        "vocab_size": len(words.get("tokenizer.ggml.tokens", [])),
        "context_length": N_CTX,
        "embedding_length": N_EMBD,
        "block_count": N_LAYER,
        "feed_forward_length": N_FF,
        "attention.head_count": N_HEAD,
        "attention.head_count_kv": N_KV,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
    }
    keys = {"general.architecture": arch, "general.name": f"tiny {name}", "general.file_type": 0}
    for key, value in (common | own).items():
        keys[key[1:] if key.startswith(".") else f"{arch}.{key}"] = value
    keys |= {key: value for key, value in words.items() if key not in keys}
    return {key: value for key, value in keys.items() if value is not None}
