"""Checkpoints on disk: GGUF files and Hugging Face folders, memory-mapped and read lazily. numpy only, no torch."""
