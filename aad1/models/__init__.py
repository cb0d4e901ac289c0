"""The causal transformer, the critic, and the parts of a Wan folder."""
