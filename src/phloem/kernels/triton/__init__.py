"""Kernels for CUDA devices in Triton, and the functions that launch them. The only importer of triton."""
