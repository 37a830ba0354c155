"""The made corpus: images and text with known answers, drawn here, for every stage and evaluation category."""
