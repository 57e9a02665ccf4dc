"""The commands, which are run as `python scripts/NAME.py`. This folder is a package only so that benchmarks and tests
can import scripts.bench.

The package is not installed, and train and data do not import it.
"""
