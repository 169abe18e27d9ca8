"""What notebooks show: figures, and the panel."""
