"""Low-rank adapters (LoRA) on linear layers and experts, and frozen weights in 4 bits (NF4).

Where the frozen weights come from belongs to train/weights.
"""
