"""Where the milliseconds go: passes over a grid, the parts of a step, layers by kind."""
