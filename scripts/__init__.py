"""Commands, run as `python scripts/NAME.py`. This is a package only so that benches and tests can import scripts.bench.

It is not installed, and neither train nor data imports it.
"""
