"""TensorRT plans: their shapes, how they are built, what they launch."""
