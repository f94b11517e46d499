"""What is learned from text, and what is measured on a device."""
