"""Console output of a run: a summary at the start, a line per logged step, a live bar, and the result at the end.

Other packages report through data/base/console.py. Only lines.py and run_console.py import Composer.
"""
