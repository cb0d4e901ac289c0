"""Training on many processes: who they are, how models are spread over them, and what they tell each other.

All of it is applied from outside: models and stages know nothing of it.
"""
