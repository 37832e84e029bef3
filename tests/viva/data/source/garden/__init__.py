"""A garden, as a source for the tests of viva."""
