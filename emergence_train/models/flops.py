"""Parameters and floating-point operations of a decoder, in closed form. The tests count the real thing."""

from emergence_train.models.config import ModelConfig

# Dense bf16 matrix rates of the vendors' data sheets (no sparsity), FLOP/s, by a part of the device's name.
# The first that matches is taken, so the more particular names stand first.
PEAK_BF16 = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
}


def non_embedding_parameters(config: ModelConfig) -> int:
    """Parameters outside the embedding and the output head: the N of scaling laws, and `params` in our tables."""
    head_dim = config.head_dim
    attention = config.width * head_dim * (2 * config.heads + 2 * config.kv_heads)
    swiglu = 3 * config.width * config.ffn
    norms = 2 * config.width
    return config.layers * (attention + swiglu + norms) + config.width


def parameters(config: ModelConfig) -> int:
    """All parameters; a tied matrix counts once."""
    return non_embedding_parameters(config) + _vocabulary(config) * config.width * (1 if config.tied else 2)


def flops_per_token(config: ModelConfig, sequence: int, *, causal: bool = True) -> float:
    """FLOPs of forward and backward per trained token, an addition and a multiplication being two.

    6 x (weights of every matrix product, output head included, embedding look-up and norms excluded)
    + 12 x layers x width x (keys a query sees): on average (sequence + 1) / 2 when causal, else `sequence`.
    Recomputation is not counted: it is the work that the model asks for, not what an implementation spends.
    """
    norms = (2 * config.layers + 1) * config.width
    matrices = non_embedding_parameters(config) - norms + _vocabulary(config) * config.width
    keys = (sequence + 1) / 2 if causal else sequence
    return 6 * matrices + 12 * config.layers * config.width * keys


def peak_flops(device_name: str) -> float | None:
    """The dense bf16 peak of a device, FLOP/s, or None where we know none (then there is no MFU to speak of)."""
    return next((peak for name, peak in PEAK_BF16.items() if name in device_name), None)


def _vocabulary(config: ModelConfig) -> int:
    if config.vocab_size is None:
        raise ValueError("vocab_size is not set yet; it comes from the tokenizer")
    return config.vocab_size
