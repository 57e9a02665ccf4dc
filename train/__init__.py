"""Training: configuration, Composer's Trainer, FSDP2, checkpoints, export. The model itself is in `train.models`."""
