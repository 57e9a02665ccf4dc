"""The data plane: any source becomes rows, rows become batches. Knows nothing of `train` or Composer."""
