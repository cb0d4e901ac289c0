"""Protocols over the measures, and the pages that show them."""
