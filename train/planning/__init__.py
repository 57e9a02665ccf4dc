"""What a run needs before it starts: memory of a rank, whether this machine has it, the plan of its rows.

Nothing here builds a model.
"""
