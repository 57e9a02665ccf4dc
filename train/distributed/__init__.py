"""Distribution of the model over ranks (FSDP2, HSDP, experts), rank setup, work of one rank for all, torch patches.

The model itself does not depend on ranks.
"""
