"""VBench-I2V through its official code, run in the user's own environment: export, doctor, run, score.

Nothing of VBench is imported or copied here: its code runs as a process of the user's Python, one dimension at a
time, and what is read back are its result files.
"""
