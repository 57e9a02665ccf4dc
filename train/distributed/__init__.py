"""How the model is spread over ranks (FSDP2, HSDP, experts), who the ranks are, work of one rank for all, patches.

The model itself knows nothing of ranks.
"""
