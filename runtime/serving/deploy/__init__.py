"""The same engine under other servers: Ray Serve, Triton."""
