"""Access to files in object stores (s3://, gs://): addresses, clients, retries and errors.

The packages that use the objects define their content.
"""
