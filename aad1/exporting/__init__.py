"""Exports: a student as a folder that other programs load, with its card, licence, example and evaluation."""
