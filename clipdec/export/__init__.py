"""A trained run as one file that answers without torch."""
