"""Training stability: checks of the loss, the gradients and the expert loads in each step, and the handling of
problems.

The computation of a step belongs to train/models and train/composer_model.py; events and exit codes belong to
train/supervision.
"""
