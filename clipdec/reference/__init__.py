"""What the ML-Decoder reference code has beside the zero-shot head."""

from clipdec.reference.group_decoder import GroupMLDecoder  # noqa: F401
