"""One HTML file about a run, or several, without outside links: what scripts/report.py writes, and each run at its end.

Reads the files of a log folder alone; whoever writes these (loggers, callbacks) does not belong here, nor torch.
"""
