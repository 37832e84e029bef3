"""The native CPU kernels: packed weights, the instruction tape and the library that runs it."""
