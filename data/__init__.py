"""The data pipeline: prepares rows from any supported source, and makes batches of rows. Does not depend on `train` or
Composer."""
