"""`make demo`: a model that learns from a drifting stream, its epochs, its deltas, and a follower that serves them."""
