"""A training step of one of many ranks, run on tensors without data: memory over time, traffic and FLOPs.

The model, its sharding, loss, backward pass, clipping and optimizer are those of a real run. train/planning makes
estimates from the config, without running the model.
"""
