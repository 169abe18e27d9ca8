"""What the ML-Decoder reference code has beside the zero-shot head."""
