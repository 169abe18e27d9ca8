"""A run for others: its model card, and its upload to the Hugging Face hub."""
