"""Any image, any labels."""
