"""Distributed training: sharding of the model (FSDP2, HSDP, expert parallelism), set-up of the ranks, tasks that one
rank does for all ranks, and patches of torch.

The model itself does not depend on ranks.
"""
