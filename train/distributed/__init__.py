"""How the model is spread over ranks (FSDP2, HSDP, experts), who the ranks are, work of one rank for all, and patches of torch.

The model itself knows nothing of ranks.
"""
