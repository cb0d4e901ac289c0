"""AAD-1: asymmetric adversarial distillation for one-step autoregressive image-to-video generation."""
