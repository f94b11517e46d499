"""The ONNX graphs of a bundle, built node by node."""
