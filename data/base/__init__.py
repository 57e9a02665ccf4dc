"""What every package of the data plane needs: errors, durations, sizes, paths, locks, worker processes.

Nothing here knows what a record, a row or a source is.
"""
