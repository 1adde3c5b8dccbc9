"""What a check computes and what is right: the other end of `hyperkern.check`, and the command ``hyperkern check``.

``child.py`` is the process of a check; ``cases.py`` and ``primitives.py`` say what it runs; ``everything.py`` starts
one for each scope of each backend, and ``findings.py`` shows what they found.
"""
