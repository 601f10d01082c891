"""A seeded run of nasty records through the real decoder, minibatcher and dead letters: see `__main__`."""
