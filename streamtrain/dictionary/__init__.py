"""The reverse dictionary: what feature ids were before they were hashed, for people who look at a model.

It stands beside the committed state and decides nothing: best effort, bounded, and only of slots that ask for it.
"""
