"""Faults during training, detected and handled: signals, lost processes, anomalies of the loss."""
