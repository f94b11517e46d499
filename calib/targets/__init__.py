"""Graphs run through polygraphy on each backend, with what a pass must cost at the least."""
