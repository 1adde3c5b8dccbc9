"""Wang & Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere"
(ICML 2020, arXiv:2005.10242), reproduced: its theory and experiments in small offline, its recipes on the real data.

``make paper`` runs all that needs no download; docs/paper.md shows what came of it. The recipes on the data sets of the
paper are commands of their own, such as ``python -m examples.paper stl10 --data DIR``.
"""
