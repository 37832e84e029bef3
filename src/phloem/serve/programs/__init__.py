"""Programs (lang/) on an engine client: states are token ids, and nothing is tokenized twice."""
