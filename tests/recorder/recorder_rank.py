"""A rank of a recorded run, started by test_api.py: DIRECTORY [also]: `also` makes rank 0 fail at its checkpoint."""

import sys

import torch
import torch.distributed as dist

from emergence_train.errors import InputError
from emergence_train.recorder import Recorder

if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    recorder = Recorder(sys.argv[1], params=10, sequence=4)
    recorder.add(torch.full((2, 4), 1.0 + rank))
    if rank == 1:
        recorder.add(torch.full((1, 2), 5.0), split="ood")  # a split that rank 0 has not seen
    means = recorder.checkpoint(1, 16, 0.1)
    assert means == {"train": 1.5, "ood": 5.0}, means
    recorder.add(torch.ones(1, 4))
    state = recorder.state_dict()
    try:
        recorder.checkpoint(1 if sys.argv[2:] else 2, 32)
    except InputError as error:
        print(error)
        sys.exit(2)
    recorder.close()
    dist.barrier()
    with Recorder(sys.argv[1], params=10, sequence=4, step=1) as resumed:
        assert resumed.tokens == 16, resumed.tokens  # on every rank
        resumed.load_state_dict(state)  # of both ranks' ones
        resumed.add(torch.full((1, 4), 3.0))
        means = resumed.checkpoint(2, 32)
        assert means == {"train": 2.0}, means
    dist.destroy_process_group()
