"""One module per backend, each with the operations of ops.py."""

BACKENDS = ("metal", "cuda", "cpu", "reference")
