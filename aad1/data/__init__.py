"""Where data comes in: the embedded world, clips, latents."""
