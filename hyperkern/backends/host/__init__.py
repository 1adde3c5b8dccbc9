"""What the backends for GPUs share on the host: primitives, dtypes, partial results. It launches nothing itself.

``pairwise.py`` makes the pairwise primitives of what a backend has kernels for, ``precision.py`` says what the operands
are multiplied in, ``partials.py`` how ranges of columns are cut and their sums added, ``panels.py`` goes through the
panels of weights where rows are too long for one pass; ``whole.py``, ``scheme.py`` and ``jobs.py`` say how whole losses
are computed; ``limits.py`` says what no kernel serves.
No file here knows a backend.
"""
