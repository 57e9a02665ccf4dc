"""nn.Linear without a bias, whose weight may be in 4 bits and have an adapter."""

import torch.nn.functional as F
from torch import Tensor, nn

from train.models.lora.nf4 import packed_linear


class Linear(nn.Linear):
    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.lora: nn.Module | None = None
        """Set by lora.adapters.add_lora: what is added to the result."""
        self.packed = False
        """Set by lora.nf4.pack_parameters: the weight is in 4 bits."""

    def forward(self, input: Tensor) -> Tensor:
        if self.lora is None:
            return self._multiply(input)
        # The adapter first: selective checkpointing does not repeat the product that comes last.
        added = self.lora(input)
        return self._multiply(input) + added

    def _multiply(self, x: Tensor) -> Tensor:
        return packed_linear(x, self.weight) if self.packed else F.linear(x, self.weight)
