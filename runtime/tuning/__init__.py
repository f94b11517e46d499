"""What is fastest on this device, and the proof that drafted equals plain."""
