"""What is in a source of videos, or in a store made of one: for people to look at before they train on it."""
