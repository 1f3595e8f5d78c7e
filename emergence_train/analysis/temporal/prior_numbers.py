"""Written by benchmarks/temporal_prior.py; the fits behind it: benchmarks/results/temporal_prior.json."""

SOURCE = (
    "public curves of decoder language models, 25M to 400M parameters, AdamW: github.com/thu-yao-01-luo/M"
    "ultiPowerLaw (arXiv 2503.12811) and github.com/fabian-sp/lr-scheduling (arXiv 2501.18965); made by b"
    "enchmarks/temporal_prior.py"
)
RUNS, GROUPS = 198, 30
# (clock, kernel): intercept at peak rate 1e-3, slope on the log of the peak rate, spread; of log B in nats
DROP = {
    ("mixed", "fast^0.5"): (-1.378, 0.44, 0.3),
    ("mixed", "fast^0.75"): (-1.59, 0.447, 0.3),
    ("mixed", "fast^1"): (-1.7, 0.468, 0.3),
    ("mixed", "slow^0.5"): (-1.318, 0.429, 0.3),
    ("mixed", "slow^0.75"): (-1.527, 0.44, 0.3),
    ("mixed", "slow^1"): (-1.633, 0.46, 0.3),
    ("rate", "fast^0.5"): (-1.235, 0.329, 0.3),
    ("rate", "fast^0.75"): (-1.449, 0.34, 0.3),
    ("rate", "fast^1"): (-1.568, 0.355, 0.3),
    ("rate", "momentum"): (-1.487, 0.364, 0.3),
    ("rate", "multi-power"): (-1.589, 0.334, 0.3),
    ("rate", "slow^0.5"): (-1.179, 0.319, 0.3),
    ("rate", "slow^0.75"): (-1.387, 0.332, 0.3),
    ("rate", "slow^1"): (-1.502, 0.349, 0.3),
}
# clock: mean exponent, spread of its logarithm
SHAPE = {
    "mixed": (0.539, 0.281),
    "rate": (0.478, 0.25),
}
RATES = (0.0001, 0.003)
