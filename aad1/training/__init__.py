"""The one loop and what it holds: players, checkpoints, metrics, the motion guard."""
