"""Images as uint8 tensors: where they come from, how they are split, drawn and augmented."""
