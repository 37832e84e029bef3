"""The simulator: the real scheduler and loop under a virtual clock, with a cost model in the place of a model."""
