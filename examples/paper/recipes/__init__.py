"""The paper's recipes on its own data sets: one command each, on one device or under torchrun.

``python -m examples.paper stl10 --data DIR`` and so on; what a command leaves in its folder it goes on from when it is
started again, and its result stands beside the published one.
"""
