"""What has parameters: the decoder, its loss, its tensors in one flat buffer, and their inventory."""
