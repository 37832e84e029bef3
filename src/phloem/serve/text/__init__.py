"""Text: tokenizers, incremental detokenization, stop strings and chat templates."""
