"""One HTML file about a run, or several, without outside links: what scripts/report.py writes, and each run at its end.

Reads only the files of a log folder. What writes them (loggers, callbacks) does not belong here, nor torch.
"""
