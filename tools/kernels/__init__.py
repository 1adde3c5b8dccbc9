"""What the compilers made of every kernel, read from its machine code; `make kernels-report`."""
