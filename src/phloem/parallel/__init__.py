"""Parallelism as data: meshes of named axes, layouts, and the collectives that carry both out."""
