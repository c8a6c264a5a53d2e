"""The studio: a page on which a run is seen, entered and steered, and the server behind it. Needs no torch."""
