"""DBRX in plain torch; knows nothing of Composer."""
