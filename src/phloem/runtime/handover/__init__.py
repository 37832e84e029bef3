"""A prompt computed by one replica and continued by another."""
