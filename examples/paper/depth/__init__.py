"""Depth from frozen features: the paper's experiment on NYU-Depth V2, and a smoke test of it on one stereo picture.

The recipe (`examples.paper.recipes.nyu_depth`) and the smoke test share all of this but the data.
"""
