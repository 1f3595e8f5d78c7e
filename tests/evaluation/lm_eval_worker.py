"""Run by test_lm_eval under torchrun: lm-eval's task `sums` of a folder, as at two checkpoints of a run."""

import json
import sys
from pathlib import Path

import torch

from emergence_train.data.tokenizer import END_OF_TEXT, load_file
from emergence_train.evaluation import lm_eval_adapter
from emergence_train.models.decoder import Decoder
from emergence_train.models.decoder_config import DecoderConfig
from emergence_train.parallel.ranks import leave, start

if __name__ == "__main__":
    tokenizer, folder = load_file(Path(sys.argv[1])), Path(sys.argv[2])
    mesh = start(1)
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(layers=2, width=32, heads=4, kv_heads=2, ffn=48, vocab_size=320, max_sequence=64))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    lm = lm_eval_adapter.EmergenceLM(model, tokenizer, tokenizer.token_to_id(END_OF_TEXT), 64, mesh)
    tasks, loads = lm_eval_adapter.Tasks(include_path=str(folder)), []
    load_spec = tasks._load_spec
    tasks._load_spec = lambda spec: loads.append(spec) or load_spec(spec)
    lm_eval_adapter.tasks = lambda *settings: tasks
    lm_eval_adapter.reach(["sums"])
    rows = [lm_eval_adapter.run_tasks(lm, "sums", shots=2) for _ in range(2)]
    result = json.dumps({"checkpoints": rows, "loads": len(loads)})
    (folder / f"{mesh.data.rank}-of-{mesh.data.size}.json").write_text(result)
    leave(0)
