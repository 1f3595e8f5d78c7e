"""PyTorch implementations: what each operation computes, and what runs where no faster backend does."""
