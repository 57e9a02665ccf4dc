"""A training run: its inputs, the Trainer and its loggers, signals, and the function `fit`, which builds everything and
trains.

Code that does not need a run belongs to a package lower in the import order.
"""
