"""Commands, run as `python scripts/NAME.py`. A package only so that the benches and tests can import scripts.bench.

It is not installed, and neither train nor data imports it.
"""
