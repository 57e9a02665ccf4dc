"""Whether a step can be trusted: non-finite values, spikes of the loss, and what is done about them.

What a run does when it is told to stop, or hangs, belongs to train/supervision.
"""
