"""The graphs of a bundle, node by node: what the exporter writes, and what every load compares with."""
