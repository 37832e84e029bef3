"""viva: interview question banks in which every claim is pinned to a version of the source and checked by a program."""
