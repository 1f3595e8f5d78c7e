"""The public operations, one a file: argument checks, dispatch, autograd."""
