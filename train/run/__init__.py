"""One training run: its inputs, the Trainer and its loggers, signals, and `fit`, which builds everything and trains.

What can be used without a run belongs to a package below.
"""
