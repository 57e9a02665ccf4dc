"""What a run needs before it starts: memory of a rank, whether this machine has it, the plan of its rows.

Opens a run's data for that; builds no model.
"""
