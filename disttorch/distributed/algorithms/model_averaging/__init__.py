"""Ranks that train on their own for a while and bring their weights together now and then."""
