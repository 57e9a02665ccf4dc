"""The data plane: any source becomes rows, and rows become batches. Does not depend on `train` or Composer."""
