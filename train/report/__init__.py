"""Reports of one or several runs as one HTML file without external links, from scripts/report.py or at a run's end.

This package only reads the files of a log folder. It contains none of their writers (loggers, callbacks) and does not
import torch.
"""
