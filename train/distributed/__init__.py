"""Distribution of the model over ranks (FSDP2, HSDP, expert parallelism), setup of ranks, work that one rank does for
all ranks, and patches of torch.

The model itself does not depend on ranks.
"""
