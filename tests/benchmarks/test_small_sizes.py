"""The pairs that are exported at small widths."""

import pytest
import torch
from safetensors import safe_open

from tests.benchmarks.small_sizes import PROMPTS, make_pair


@pytest.mark.parametrize(("recipe", "most"), [("mobile", 4), ("int4", 15)])
def test_weights_are_as_many_integers_as_the_recipe_has(recipe, most, tmp_path):
    make_pair("12b", recipe, tmp_path)
    assert (tmp_path / PROMPTS).is_file()
    for path in (tmp_path / "target").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  it is no mapping
                weights = file.get_tensor(name)
                if name.endswith("proj.weight"):
                    assert 2 < len(torch.unique(weights[0].float())) <= most
