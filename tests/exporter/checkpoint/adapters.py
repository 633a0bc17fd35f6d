"""LoRA adapters as peft saves them, with random numbers."""

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def base_model(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def make_adapter(base: Path, out: Path, seed: int = 0, **options: Any) -> Path:
    """An adapter for the model in `base`; `options` are LoraConfig's."""
    torch.manual_seed(seed)
    options = {"r": 4, "lora_alpha": 6, "init_lora_weights": False, **options}
    with quiet():
        model = get_peft_model(base_model(base), LoraConfig(**options))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".modules_to_save." in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(out)
    return out


def peft_model(base: Path, adapter: Path) -> Any:
    """What a user's own code loads."""
    with quiet():
        return PeftModel.from_pretrained(base_model(base), adapter).eval()


def edit_config(adapter: Path, **changes: Any) -> None:
    path = adapter / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(adapter: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(adapter / WEIGHTS)
    change(tensors)
    save_file(tensors, adapter / WEIGHTS)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without peft's advice on tied weights and missing configurations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
