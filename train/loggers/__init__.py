"""Where the metrics of a run go: Composer's logger destinations, each adapted, one a module.

What is measured belongs to the callbacks, what is shown on the console to train/console.
"""
