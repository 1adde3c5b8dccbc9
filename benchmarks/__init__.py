"""Speed and memory of hyperkern, measured beside its peers by the harness in `hyperkern.bench`."""
