"""What the backends for GPUs share on the host: dtypes, partial results, panels. It launches nothing, knows no backend.

``precision.py`` says what the operands are multiplied in, ``partials.py`` how ranges of columns are cut and their sums
added, ``panels.py`` goes through the panels of weights where rows are too long for one pass; ``report.py`` reads
compiled kernels for the backends' reports.
"""
