"""What a run shows on the console: a summary at the start, a line for each logged step, a live bar, how it ended.

What others report in between goes through data/base/console.py. Only lines.py and run_console.py import Composer.
"""
