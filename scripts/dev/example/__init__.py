"""The parts of scripts/dev/worked_example.py: questions, commands, the server, figures, and the page.

The page is docs/examples/python-stdlib.md. Nothing outside this folder and its tests uses these modules.
"""
