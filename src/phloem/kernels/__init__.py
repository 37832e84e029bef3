"""Kernels: implementations of the op vocabulary, registered by op name with what they require."""
