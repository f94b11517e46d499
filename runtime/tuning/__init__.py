"""The fastest way to decode on this device, and the proof that drafted equals plain."""
