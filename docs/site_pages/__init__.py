"""Pages of the site that are generated from the code at build time (hooks.py)."""
