"""patch_llama against the same model unpatched, on what its kernels cover and on what they leave to the model."""

import copy
import inspect

import pytest
import torch

import emergence_kernels as ek
from emergence_kernels import llama_patch as patching

transformers = pytest.importorskip("transformers", minversion="5.0")

SIZES = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
)
MODELS = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {}),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM, {"sliding_window": 8}),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {"tie_word_embeddings": True}),
}


def pair(family: str):
    """A model, and a copy of it that is patched."""
    config, kind, more = MODELS[family]
    torch.manual_seed(0)
    plain = kind(config(**SIZES, **more)).train()
    for name, parameter in plain.named_parameters():
        if parameter.dim() == 1:  # gains and biases are 1 and 0
            torch.nn.init.normal_(parameter, float(name.endswith("norm.weight")), 0.1)
    return plain, ek.patch_llama(copy.deepcopy(plain))


def inputs(rows=3, length=20):
    torch.manual_seed(1)
    ids = torch.randint(1, 97, (rows, length))
    labels = ids.clone()
    labels[0, 5:9] = -100
    return ids, labels


@pytest.fixture
def used(monkeypatch):
    """How often each kernel was called."""
    counts = dict.fromkeys(("fused_attention", "rms_norm", "swiglu", "position_loss"), 0)

    def counted(name, operation):
        def call(*args, **kwargs):
            counts[name] += 1
            return operation(*args, **kwargs)

        return call

    for name in counts:
        monkeypatch.setattr(patching, name, counted(name, getattr(patching, name)))
    return counts


@pytest.mark.parametrize("family", MODELS)
def test_loss_and_gradients_are_the_models_own(family, used):
    plain, patched = pair(family)
    ids, labels = inputs()
    expected, ours = plain(ids, labels=labels), patched(ids, labels=labels)
    masked = family == "mistral"  # its window is shorter than the text: not what the kernel is given
    assert used == {"fused_attention": 0 if masked else 2, "rms_norm": 5, "swiglu": 2, "position_loss": 1}
    assert ours.logits is None
    torch.testing.assert_close(ours.loss, expected.loss, atol=1e-6, rtol=1e-6)
    for loss in (expected.loss, ours.loss):
        loss.backward()
    for (name, p), (_, q) in zip(plain.named_parameters(), patched.named_parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, atol=2e-6, rtol=2e-5, msg=name)


def test_losses_by_position_are_those_of_a_loop():
    plain, patched = pair("llama")
    ids, labels = inputs()
    patched(input_ids=ids, labels=labels)
    log_p = plain(ids).logits.double().log_softmax(-1)
    for t in range(ids.shape[1]):
        rows = [b for b in range(len(ids)) if t + 1 < ids.shape[1] and labels[b, t + 1] != -100]
        total = sum(-log_p[b, t, labels[b, t + 1]].item() for b in rows)
        assert patched.last_loss.positions.count[t] == len(rows)
        assert patched.last_loss.positions.loss_sum[t].item() == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("case", ["padding", "packed", "items", "shifted", "hidden states", "window inside"])
def test_what_a_trainer_passes_gives_the_same_loss(case):
    plain, patched = pair("mistral" if case == "window inside" else "llama")
    ids, labels = inputs(length=7 if case == "window inside" else 20)
    more = {}
    if case == "padding":
        more["attention_mask"] = (torch.arange(20) < torch.tensor([[20], [13], [4]])).long()
        labels[more["attention_mask"] == 0] = -100
    elif case == "packed":
        more["position_ids"] = torch.cat([torch.arange(12), torch.arange(8)]).expand(3, -1)
    elif case == "items":
        more["num_items_in_batch"] = torch.tensor(123)
    elif case == "shifted":
        more["shift_labels"] = ids.flip(1)
    elif case == "hidden states":
        more["output_hidden_states"] = True
    expected, ours = plain(ids, labels=labels, **more), patched(ids, labels=labels, **more)
    torch.testing.assert_close(ours.loss, expected.loss, atol=1e-6, rtol=1e-6)
    assert len(ours.hidden_states or ()) == len(expected.hidden_states or ())


def test_evaluation_and_generation_are_the_models_own():
    plain, patched = (model.eval() for model in pair("llama"))
    ids, labels = inputs()
    expected, ours = plain(ids, labels=labels), patched(ids, labels=labels)
    torch.testing.assert_close(ours.logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.loss, expected.loss)
    texts = [
        model.generate(ids[:1, :6], max_new_tokens=8, do_sample=False).tolist()
        for model in (plain, patched)  # prefills and decodes with a cache
    ]
    assert texts[0] == texts[1]


def test_patched_twice_copied_and_saved_it_is_the_same(tmp_path):
    plain, patched = pair("llama")
    ids, labels = inputs()
    once = patched(ids, labels=labels).loss
    twice = copy.deepcopy(ek.patch_llama(patched))
    with torch.no_grad():
        patched.lm_head.weight.zero_()  # of which the copy knows nothing
    assert torch.equal(twice(ids, labels=labels).loss, once)
    assert list(twice.state_dict()) == list(plain.state_dict())
    assert inspect.signature(twice.forward) == inspect.signature(plain.forward)  # Trainer drops what it does not name
    twice.save_pretrained(tmp_path)
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(ids, labels=labels).loss, once, atol=1e-6, rtol=1e-6)


def test_layers_that_are_no_longer_plain_are_left_alone(used):
    class Adapter(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    _, patched = pair("llama")
    ids, labels = inputs()
    for layer in patched.model.layers:
        old = layer.mlp.gate_proj
        layer.mlp.gate_proj = Adapter(old.in_features, old.out_features, bias=False)
    patched(ids, labels=labels)
    assert used["swiglu"] == 0


@pytest.mark.parametrize("case", ["hook on gate", "hook on head", "loss function", "ignored index", "rows of logits"])
def test_what_a_user_changes_is_respected(case):
    plain, patched = pair("llama")
    ids, labels = inputs()
    more = {}
    for model in (plain, patched):
        if case == "hook on gate":
            model.model.layers[0].mlp.gate_proj.register_forward_hook(lambda module, given, out: out * 2)
        elif case == "hook on head":
            model.lm_head.register_forward_hook(lambda module, given, out: out * 2)
        elif case == "loss function":
            model.loss_function = lambda logits, labels, vocab_size, **_: logits.square().mean()
    if case == "ignored index":
        more, labels = {"ignore_index": 3}, ids
    elif case == "rows of logits":
        more, labels = {"logits_to_keep": torch.arange(20)}, ids
    expected, ours = plain(ids, labels=labels, **more), patched(ids, labels=labels, **more)
    torch.testing.assert_close(ours.loss, expected.loss, atol=1e-6, rtol=1e-6)


def test_parts_can_be_left_out(used):
    plain, _ = pair("llama")
    ids, labels = inputs()
    ek.patch_llama(plain, attention=False, norm=False, loss=False)
    plain(ids, labels=labels)
    assert used == {"fused_attention": 0, "rms_norm": 0, "swiglu": 2, "position_loss": 0}


def test_another_model_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"patch_llama: Linear \(model_type None\) is not a causal model of llama"):
        ek.patch_llama(torch.nn.Linear(2, 2))


def test_modules_are_the_operations():
    torch.manual_seed(0)
    x, residual = torch.randn(2, 3, 5, 16)
    norm, mlp = ek.RMSNorm(16, eps=1e-5), ek.SwiGLU(16, 24, bias=True)
    torch.testing.assert_close(norm(x), torch.nn.functional.rms_norm(x, (16,), norm.weight, 1e-5))
    y, total = norm(x, residual)
    assert torch.equal(total, x + residual) and torch.equal(y, norm(x + residual))
    gate, up = mlp.gate_up(x).chunk(2, -1)
    torch.testing.assert_close(mlp(x), mlp.down(torch.nn.functional.silu(gate) * up))
    assert repr(norm) == "RMSNorm(16, eps=1e-05)"


def test_compiled_at_several_lengths_it_is_one_graph():
    _, model = pair("llama")
    torch._dynamo.reset()
    compiled, losses = torch.compile(model, backend="aot_eager", fullgraph=True), []
    for length in (17, 33, 48, 40, 29):
        ids, labels = inputs(length=length)
        losses.append([run(input_ids=ids, labels=labels).loss.item() for run in (compiled, model)])
    torch._dynamo.reset()
    assert all(ours == pytest.approx(eager, rel=1e-6) for ours, eager in losses)
