"""One module per backend, each with the operations of ops.py."""

BACKENDS = ("metal", "cpu", "reference")
