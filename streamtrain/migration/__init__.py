"""Changes what a living model is made of, keeping what it has learned. `migrate` is the way in."""
