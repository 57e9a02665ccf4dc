"""The parts of scripts/dev/worked_example.py: questions, commands, the server, figures, and the page.

The page is docs/examples/python-stdlib.md. These modules are used only in this folder and in its tests.
"""
