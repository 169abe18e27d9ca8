"""A run from its settings to its figures: what is computed once and kept, several processes, signals, whole files."""
