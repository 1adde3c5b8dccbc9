"""The package as a kernel of the Hugging Face kernels hub: the same sources, in the layout that its builder takes."""
