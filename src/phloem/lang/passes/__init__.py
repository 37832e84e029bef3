"""Rewrites of a program, one a file; `pipeline` names them and their order."""
