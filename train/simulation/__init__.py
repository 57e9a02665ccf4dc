"""Simulates a training step of one rank on tensors without data, and reports memory over time, traffic and FLOPs.

The model, its sharding, loss, backward pass, clipping and optimizer are those of a real run. train/planning makes
estimates from the config, without running the model.
"""
