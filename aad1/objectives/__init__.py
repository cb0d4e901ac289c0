"""The method's losses: tensors in, scalars out."""
