"""Object stores (s3://, gs://) that files are written to and read from: addresses, clients, retries, errors.

What the objects contain is known by the packages that use them.
"""
