"""Checkpoints of integers as compressed-tensors' own code writes them."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file

from tests.exporter import tiny_models

# Rows that groups of 32 divide, as in the published sizes.
SHAPE = dataclasses.replace(
    tiny_models.E2B,
    hidden_size=64,
    intermediate_size=96,
    head_dim=16,
    global_head_dim=32,
    per_layer=32,
)
IGNORED = ["lm_head", "re:.*per_layer_model_projection"]  # as w4a16 checkpoints leave some aside


def save_packed(
    folder: Path,
    shape: tiny_models.Shape = SHAPE,
    scale_type: torch.dtype = torch.bfloat16,
    **options: Any,
) -> Path:
    """A random target whose linear layers are integers; `options` are QuantizationArgs'."""
    scheme = {"num_bits": 4, "strategy": "group", "group_size": 32, **options}
    config = QuantizationConfig(
        config_groups={
            "group_0": QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**scheme))
        },
        ignore=IGNORED,
        format="pack-quantized",
    )
    model = tiny_models.target_model(shape, 3).to(scale_type)
    apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "quantization_scheme"):
            _observe(module)
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(model)
    tiny_models.save(model, folder)
    logging.getLogger("compressed_tensors").setLevel(logging.ERROR)
    compressor.update_config(str(folder))
    return folder


def _observe(module: Any) -> None:
    """The scale of each group from its largest value."""
    arguments = module.quantization_scheme.weights
    weight = module.weight.detach()
    num_groups = module.weight_scale.shape[1]
    groups = weight.reshape(len(weight), num_groups, -1)
    scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), arguments)
    module.weight_scale.data = scale.to(weight.dtype)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """The file's own tensors, by their name without `model.`."""
    tensors = load_file(folder / "model.safetensors")
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
