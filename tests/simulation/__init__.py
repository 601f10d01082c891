"""Seeded simulation of everything that decides what is learned: one process, fake time, real code, faults at every step.

python -m tests.simulation --seeds 10000
"""
