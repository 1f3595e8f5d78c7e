"""The analyses: they read tables, whoever wrote them, and return results; output modules write and draw.

temporal/ and emergence/ are wings of their own (emergence may import temporal, never back); what both share lies beside them:
runs and tables as series and matrices, the learning rate's plan, how figures look. A new analysis is a new wing.
"""
