"""How many floating-point operations a training step takes."""

from train.models.config import LoraConfig, ModelConfig
from train.models.shapes import count_adapters, count_parameters


def flops_per_token(model: ModelConfig, seq_len: int, lora: LoraConfig | None = None) -> int:
    """Of a training step, forward and backward: 6 per active parameter (the embedding is a look-up), or 4 where it is
    frozen beneath adapters, and 12 L S d for attention over whole rows (the PaLM paper's count)."""
    active = count_parameters(model)[1] - model.vocab_size * model.d_model
    attention = 12 * model.n_layers * seq_len * model.d_model
    if lora is None:
        return 6 * active + attention
    return 4 * active + 6 * count_adapters(model, lora)[1] + attention
