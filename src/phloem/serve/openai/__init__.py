"""The OpenAI API: wire models, validation, and answers assembled from engine events."""
