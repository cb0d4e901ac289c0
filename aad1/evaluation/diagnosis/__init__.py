"""A run's logs in words: what is going wrong, how sure that is, and what to try."""
