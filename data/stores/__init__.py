"""Object stores (s3://, gs://) for reading and writing files: addresses, clients, retries, errors.

The packages that use the objects define their content.
"""
