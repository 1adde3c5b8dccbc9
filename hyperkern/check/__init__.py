"""Whether the kernels of a backend are right on the GPU at hand: asked once, answered by a process of its own.

`first_use.verdict` is what the choice of a backend asks. It looks for a record on this machine (``records.py``), and
where there is none starts a check (``process.py``) of what the call needs (``scope.py``): a child process runs the
cases of `hyperkern.correctness` against float64, so that a kernel that hangs or crashes takes no training with it.
"""
