"""What the graphs can be made of.

In: a `ModelConfig` as a checkpoint has it. Out: nothing, or a CheckpointError that names the field.
"""

from firp.runtime.bundle.graph_spec import ModelConfig
from firp.runtime.errors import CheckpointError

LEAST_CONTEXT = 16  # tokens: a prompt, a tree of drafts and some steps; shorter ones are mistakes
LEAST_WINDOW = 2  # tokens: Hugging Face's own cache is wrong for a window of 1
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)


def check_config(config: ModelConfig) -> None:
    """Raises CheckpointError."""
    for name in _SIZES:
        if not isinstance(getattr(config, name), int) or getattr(config, name) < 1:
            raise _bad(config, name, "a positive integer")
    if not 0 < config.rms_norm_eps < 1:
        raise _bad(config, "rms_norm_eps", "between 0 and 1")
    if config.num_hidden_layers < 2:
        raise CheckpointError("too few layers to split", got=config.num_hidden_layers, expected="at least 2")
    if config.num_attention_heads % config.num_key_value_heads:
        raise CheckpointError(
            "heads do not divide",
            got=f"{config.num_attention_heads} query, {config.num_key_value_heads} key/value heads",
        )
    if config.head_dim % 2:
        raise _bad(config, "head_dim", "an even number, for rotary embedding turns pairs")
    if config.max_position_embeddings < LEAST_CONTEXT:
        raise _bad(config, "max_position_embeddings", f"at least {LEAST_CONTEXT}")
    window = config.sliding_window
    if window is not None and not (isinstance(window, int) and window >= LEAST_WINDOW):
        raise _bad(config, "sliding_window", f"at least {LEAST_WINDOW}, or null")


def _bad(config: ModelConfig, name: str, expected: str) -> CheckpointError:
    return CheckpointError(f"bad {name} in config.json", got=getattr(config, name), expected=expected)
