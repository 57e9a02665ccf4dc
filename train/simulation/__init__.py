"""Simulates a training step of one of many ranks, with tensors without data, to determine memory over time, traffic and
FLOPs.

The model, its sharding, loss, backward pass, clipping and optimizer are those of a real run. In contrast,
train/planning computes estimates from the config, without running the model.
"""
