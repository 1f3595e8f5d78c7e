"""The analyses: they read tables, whoever wrote them, and return results; output modules write them.

temporal/ and emergence/ are wings of their own (emergence may import temporal, never back). Of each wing result.py is what
result.json holds, figures.py what is drawn, output.py what is written. What both share lies beside them: runs and tables as
series and matrices, the planned learning rate, results as JSON with a schema, figures and how they become files. A new
analysis is a new wing.
"""
