"""Access to files in object stores (s3://, gs://): addresses, clients, retries and errors.

The content of the objects is defined in the packages that use the stores.
"""
