"""What the experts of a run do: loads, routers and gradients of each layer, and when an expert is reported.

What a step adds up for it belongs to train/stability; where metrics go, to train/loggers.
"""
