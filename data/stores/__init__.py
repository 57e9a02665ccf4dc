"""Object stores (s3://, gs://) for reading and writing files: addresses, clients, retries, errors.

The content of the objects is defined in the packages that use them.
"""
