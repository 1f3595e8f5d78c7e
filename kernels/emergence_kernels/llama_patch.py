"""The kernels in a transformers model of Llama's shape (Llama, Mistral, Qwen2), which stays the same object."""

import functools
import inspect
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention.op import attention as fused_attention
from .cross_entropy.position_loss import PositionLoss, position_loss
from .rms_norm.op import rms_norm
from .swiglu.op import swiglu

FAMILIES = ("llama", "mistral", "qwen2")  # model_type of those whose modules are the same
ATTENTION = "emergence"  # its name among transformers' attention implementations


def patch_llama(
    model: nn.Module, *, attention: bool = True, norm: bool = True, mlp: bool = True, loss: bool = True
) -> nn.Module:
    """Let a causal model of transformers compute with these kernels; returns it.

    Parameters, names and checkpoints are unchanged. What the kernels do not cover goes the model's own way: attention with
    padding, a cache or dropout; layers that are no plain linear ones any more (adapters, quantised weights, hooks); another
    loss function; evaluation.

    Args:
        model: LlamaForCausalLM, MistralForCausalLM or Qwen2ForCausalLM.
        attention: causal attention by `attention`, registered with transformers under the name "emergence".
        norm: every RMSNorm by `rms_norm`.
        mlp: gate and up projection as one product, and `swiglu`.
        loss: in training, with labels, the loss by `position_loss`: the output's `logits` are None, and
            `model.last_loss` is the PositionLoss, with the loss of each token and the sums at each position.

    Raises:
        ValueError: the model is of another family. ImportError: transformers is not installed, or older than 5.
    """
    config = getattr(model, "config", None)
    family = getattr(config, "model_type", None)
    if family not in FAMILIES or not hasattr(model, "lm_head"):
        raise ValueError(
            f"patch_llama: {type(model).__name__} (model_type {family!r}) is not a causal model of {', '.join(FAMILIES)}"
        )
    if attention:
        _register_attention()
        model.set_attn_implementation(ATTENTION)  # type: ignore[operator]
    for module in model.modules():
        if norm and type(module).__name__.endswith("RMSNorm"):
            _rebind(module, _norm_forward)
        if mlp and type(module).__name__.endswith("MLP") and config.hidden_act in ("silu", "swish"):  # type: ignore[union-attr]
            _rebind(module, _mlp_forward)
    if loss and type(model.lm_head) is nn.Linear:
        _rebind(model.lm_head, _head_forward)
        _rebind(model, _causal_forward)
    return model


def _rebind(module: nn.Module, forward: Any) -> None:
    """`forward`(module, original, ...) in place of the module's own, with its signature (which Trainer reads); once."""
    original = type(module).forward

    @functools.wraps(original)
    def bound(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(self, functools.partial(original, self), *args, **kwargs)

    module.forward = MethodType(bound, module)  # a copy of the module gets its own


def _norm_forward(norm: Any, original: Any, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, norm.weight, norm.variance_epsilon)


def _plain(layer: Any) -> bool:
    """Whether a layer's weight can be read without calling it: no adapter, quantisation or hooks, not partitioned by ZeRO-3."""
    return type(layer) is nn.Linear and not hasattr(layer.weight, "ds_id") and not _hooked(layer)


def _hooked(layer: nn.Module) -> bool:
    return any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks))


def _mlp_forward(mlp: Any, original: Any, x: Tensor) -> Tensor:
    gate, up = mlp.gate_proj, mlp.up_proj
    if not (_plain(gate) and _plain(up)):
        return original(x)
    # Copying the weights together costs less than their outputs as soon as there are more tokens than features.
    weight = torch.cat([gate.weight, up.weight])
    bias = None if gate.bias is None else torch.cat([gate.bias, up.bias])
    return mlp.down_proj(swiglu(F.linear(x, weight, bias)))


def _head_forward(head: Any, original: Any, hidden: Tensor, targets: Tensor | None = None) -> Tensor | PositionLoss:
    """Called as a module also for the loss, so that ZeRO-3 has gathered the weight."""
    return original(hidden) if targets is None else position_loss(hidden, head.weight, targets)


def _causal_forward(model: Any, original: Any, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
    kwargs |= zip(inspect.signature(original).parameters, args)
    keep = kwargs.get("logits_to_keep")
    own_loss = hasattr(model, "_loss_function") or "ignore_index" in kwargs
    # ZeRO-3 gathers the weight by hooks
    own_head = not hasattr(model.lm_head.weight, "ds_id") and _hooked(model.lm_head)
    own_output = kwargs.get("return_dict") is False or isinstance(keep, Tensor) or bool(keep)
    fused = model.training and torch.is_grad_enabled()
    if labels is None or not fused or own_loss or own_head or own_output:
        return original(labels=labels, **kwargs)
    from transformers.modeling_outputs import CausalLMOutputWithPast

    items, targets = kwargs.pop("num_items_in_batch", None), kwargs.pop("shift_labels", None)
    for name in ("logits_to_keep", "return_dict"):
        kwargs.pop(name, None)
    out = model.model(**kwargs)
    if targets is None:  # each token's target is the next one
        targets = F.pad(labels, (0, 1), value=-100)[..., 1:]
    hidden = out.last_hidden_state
    result = model.lm_head(hidden, targets.to(hidden.device))
    model.last_loss = result._replace(loss=result.loss.detach())  # a module that keeps a graph cannot be copied
    loss = result.loss
    if items is not None:  # Trainer's mean over all micro-batches of a step
        loss = loss * (result.positions.count.sum() / items)
    return CausalLMOutputWithPast(
        loss=loss, past_key_values=out.past_key_values, hidden_states=out.hidden_states, attentions=out.attentions
    )


def _register_attention() -> None:
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.integrations.sdpa_attention import sdpa_attention_forward
        from transformers.masking_utils import sdpa_mask
    except ImportError as error:
        import transformers

        raise ImportError(
            f"patch_llama: needs transformers 5 or newer, this is {transformers.__version__}; pip install -U transformers, or "
            f"give attention=False"
        ) from error

    def forward(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """query (B, H, T, D), key and value (B, K, S, D) -> (B, T, H, D)."""
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        more = any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias", "cache"))
        # No mask where T = S: nothing but causality, since sdpa_mask makes one for padding, packing and short windows.
        if attention_mask is not None or query.shape[2] != key.shape[2] or dropout or not causal or more:
            kwargs |= {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
            return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return fused_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale=scaling), None

    AttentionInterface.register(ATTENTION, forward)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
