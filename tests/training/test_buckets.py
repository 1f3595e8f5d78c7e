"""DeepSpeed's buckets: a share of the model, never more than its defaults."""

import pytest
import torch

from emergence_train.config import Training
from emergence_train.parallel.mesh import data_parallel
from emergence_train.training.engine import deepspeed_config

SCHEDULE = {"kind": "constant", "lr": 0.001}


@pytest.mark.parametrize(
    ("parameters", "bucket"),
    [(1_968, 250_000), (34_087_424, 8_521_856), (32_194_945_536, 500_000_000)],
)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_buckets_follow_the_model(parameters, bucket, stage):
    training = Training.model_validate({"tokens": 1, "batch": 8, "zero_stage": stage, "schedule": SCHEDULE})
    mesh = data_parallel(0, 2, 0, torch.device("cpu"))
    zero = deepspeed_config(training, mesh, parameters)["zero_optimization"]
    assert zero["reduce_bucket_size"] == zero["allgather_bucket_size"] == bucket
    assert zero.get("stage3_prefetch_bucket_size", 0) == (min(bucket, 50_000_000) if stage == 3 else 0)
