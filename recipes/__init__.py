"""Recipes: command line, data and models that train a decoder with NITP."""
