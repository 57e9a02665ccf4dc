"""What a run needs, determined before it starts: the memory per rank, whether this machine has enough of it, and the
row plan.

Opens the run's data, but builds no model.
"""
