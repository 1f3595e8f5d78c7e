"""The analyses: they read tables and return results; output modules write files.

temporal/ and emergence/ are separate packages (emergence may import temporal, not the reverse). In each, result.py has the
dataclasses of result.json, figures.py the figures, output.py the files. Shared modules: runs and tables as series and matrices,
the planned learning rate, results as JSON with a schema, figures and their drawing. A new analysis is a new package.
"""
