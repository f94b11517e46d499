"""Memory and graphs on a device: ONNX Runtime and TensorRT behind one interface."""
