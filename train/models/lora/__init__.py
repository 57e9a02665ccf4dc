"""Low-rank adapters (LoRA) on linear layers and experts, and frozen weights in 4 bits (NF4).

train/weights loads the frozen weights.
"""
