"""Training: configuration, Composer's Trainer, FSDP2, checkpoints, export. `train.models` is the model itself."""
