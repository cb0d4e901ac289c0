"""Pure functions of frames: motion, and the world's measures with truth."""
