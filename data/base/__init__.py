"""What every package of the data plane needs: errors, console, durations, sizes, paths, secrets, locks, workers.

Nothing here knows what a record, a row or a source is.
"""
