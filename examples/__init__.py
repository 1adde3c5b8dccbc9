"""How the library is used, from a source tree: each is started as ``python -m examples.NAME`` in its root."""
