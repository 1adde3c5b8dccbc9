"""Speed and memory of hyperkern, measured beside its baselines in one run: ``pytest benchmarks --benchmark-only``."""
