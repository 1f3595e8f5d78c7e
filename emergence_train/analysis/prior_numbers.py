"""Written by benchmarks/temporal_prior.py; the fits behind it: benchmarks/results/temporal_prior.json."""

SOURCE = (
    "public curves of decoder language models, 25M to 400M parameters, AdamW: github.com/thu-yao-01-luo/M"
    "ultiPowerLaw (arXiv 2503.12811) and github.com/fabian-sp/lr-scheduling (arXiv 2501.18965), fitted by"
    " benchmarks/temporal_prior.py"
)
RUNS, GROUPS = 201, 31
# (clock, kernel): intercept at peak rate 1e-3, slope on the log of the peak rate, spread; of log B in nats
DROP = {
    ("mixed", "fast^0.5"): (np.float64(-1.405), np.float64(0.428), np.float64(0.209)),
    ("mixed", "fast^0.75"): (np.float64(-1.617), np.float64(0.434), 0.2),
    ("mixed", "fast^1"): (np.float64(-1.733), np.float64(0.45), 0.2),
    ("mixed", "slow^0.5"): (np.float64(-1.344), np.float64(0.417), 0.2),
    ("mixed", "slow^0.75"): (np.float64(-1.554), np.float64(0.427), 0.2),
    ("mixed", "slow^1"): (np.float64(-1.666), np.float64(0.442), 0.2),
    ("rate", "fast^0.5"): (np.float64(-1.262), np.float64(0.317), 0.2),
    ("rate", "fast^0.75"): (np.float64(-1.477), np.float64(0.328), 0.2),
    ("rate", "fast^1"): (np.float64(-1.6), np.float64(0.338), 0.2),
    ("rate", "momentum"): (np.float64(-1.52), np.float64(0.349), 0.2),
    ("rate", "multi-power"): (np.float64(-1.619), np.float64(0.317), 0.2),
    ("rate", "slow^0.5"): (np.float64(-1.205), np.float64(0.307), 0.2),
    ("rate", "slow^0.75"): (np.float64(-1.414), np.float64(0.32), 0.2),
    ("rate", "slow^1"): (np.float64(-1.534), np.float64(0.332), 0.2),
}
# clock: mean exponent, spread of its logarithm
SHAPE = {
    "mixed": (0.539, 0.286),
    "rate": (0.478, 0.227),
}
RATES = (0.0001, 0.003)
