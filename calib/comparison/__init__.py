"""One backend's tensors against another's, to find the first layer that diverges."""
