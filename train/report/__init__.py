"""Reports of one or several runs as one HTML file without external links, written by scripts/report.py or at a run's
end.

This package only reads the files of a log folder. The loggers and callbacks that write these files are in other
packages. This package does not import torch.
"""
