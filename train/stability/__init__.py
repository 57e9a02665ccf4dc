"""What the loss, the gradients and the experts' loads of a step say about a run, and what it does about them.

What a step computes belongs to train/models and train/composer_model.py; events and exit codes, to train/supervision.
"""
