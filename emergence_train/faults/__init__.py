"""What goes wrong while training, noticed and answered: signals, lost processes, bad numbers."""
