"""A whole decoder trained with each of its operations by our kernels stays with one of PyTorch's own, from the same start."""

import functools

import pytest
import torch

from emergence_train.models.decoder import Decoder
from emergence_train.models.decoder_config import DecoderConfig

STEPS, ROWS, T, WORDS = 200, 2, 4, 24
CONFIG = DecoderConfig(layers=2, width=16, heads=2, kv_heads=1, ffn=32, vocab_size=WORDS, max_sequence=T)


def trained(backend: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """-> the loss of every step, of sums modulo the vocabulary."""
    torch.manual_seed(0)
    model = Decoder(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1 if parameter.dim() > 1 else 0.0)
        parameter.data += parameter.dim() == 1
    model.to(device, dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMERGENCE_KERNELS_BACKEND", backend)
        for _ in range(STEPS):
            tokens = ((torch.randint(WORDS, (ROWS, 1)) + torch.arange(T + 1) * 3) % WORDS).to(device)
            loss = model(tokens[:, :-1], tokens[:, 1:]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return torch.stack(losses).double().cpu()


@functools.cache
def by_pytorch(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return trained("torch", dtype, device)


@pytest.mark.parametrize("kernels", ["cpu", pytest.param("triton", marks=pytest.mark.slow)])
def test_a_decoder_of_kernels_learns_as_pytorch_does(kernels, device, request):
    """200 steps of attention, SwiGLU, rotary, norms and loss: at most three times as far from float64 as PyTorch's float32, and
    every operation is ours."""
    if kernels == "cpu" and (device.type == "cuda" or (reason := request.getfixturevalue("cpu_library"))):
        pytest.skip(f"{device.type}: {'' if device.type == 'cuda' else reason}")
    if kernels == "triton":
        request.getfixturevalue("triton_only")
    ours = trained(kernels, torch.float32, device)
    exact, plain = by_pytorch(torch.float64, device), by_pytorch(torch.float32, device)
    assert exact[-20:].mean() < 0.5 * exact[:20].mean(), "it learns"
    ours_apart, plain_apart = (((losses - exact).abs() / exact).max().item() for losses in (ours, plain))
    print(f"{kernels}: {ours_apart:.1e} from float64, PyTorch {plain_apart:.1e}")
    assert 0 < ours_apart <= 3 * plain_apart and not torch.equal(ours, plain)
