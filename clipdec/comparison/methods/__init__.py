"""One file a method of the field."""
