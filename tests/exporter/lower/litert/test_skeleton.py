"""What conversion and injection refuse, and what they leave behind."""

import pytest
import torch
from torch import nn

from exporter.errors import ExportError
from exporter.lower.litert import vendor
from exporter.lower.litert.inject import inject
from exporter.lower.litert.skeleton import convert
from exporter.lower.litert.vendor import Signature
from exporter.quantize import WeightType
from tests.exporter.lower.litert.files import read, run


class Weights(nn.Module):
    """Some virtual matrices, and the numbers they stand for."""

    def __init__(self, **shapes: tuple[int, int]) -> None:
        super().__init__()
        self.numbers = {name: torch.randn(shape) for name, shape in shapes.items()}
        for name, shape in shapes.items():
            self.register_parameter(
                name, nn.Parameter(torch.zeros(1, 1).expand(shape), requires_grad=False)
            )

    def packed(self, _name):
        return None

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.numbers[name].shape)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self.numbers[name][start:stop]

    def export(self, folder, bits: int = 32, widths: tuple[int, ...] = (1,)):
        skeleton, out = folder / "skeleton", folder / "out.tflite"
        weights = dict(self.named_parameters())
        signatures = [
            Signature(
                "step" if width == 1 else f"step_{width}", self, {"x": torch.zeros(1, width, 4)}
            )
            for width in widths
        ]
        names = convert(signatures, weights, skeleton)
        inject(skeleton, names, self, dict.fromkeys(names, WeightType(bits)), out)
        return out


class TwoLinears(Weights):
    def forward(self, x):
        return {"y": nn.functional.linear(nn.functional.linear(x, self.a), self.b)}


class ScaledAfter(Weights):
    def forward(self, x):
        return {"y": nn.functional.linear(x, self.a) * 0.25}


class ReadsOneOfTwo(Weights):
    def forward(self, x):
        return {"y": nn.functional.linear(x, self.a)}


def test_matrices_of_the_same_shape_are_not_mixed_up(tmp_path):
    module = TwoLinears(a=(4, 4), b=(4, 4))
    x = torch.randn(1, 1, 4)
    found = run(module.export(tmp_path), "step", x=x)["y"]
    expected = x @ module.numbers["a"].T @ module.numbers["b"].T
    torch.testing.assert_close(found, expected)


def test_twelve_weights_keep_their_numbers_apart(tmp_path):
    """A number that is a prefix of another (1, 11) must not be taken for it."""

    class Chain(Weights):
        def forward(self, x):
            for name in self.numbers:
                x = nn.functional.linear(x, self.get_parameter(name))
            return {"y": x}

    module = Chain(**{f"w{i}": (4, 4) for i in range(12)})
    stored = {w.name: w.data for w in read(module.export(tmp_path)).weights()[0]}
    assert stored == {name: t.numpy().tobytes() for name, t in module.numbers.items()}


def test_the_scales_of_a_weight_lie_in_the_file_once(tmp_path):
    """E2B has a million of them, and six signatures."""
    file = read(TwoLinears(a=(8, 4), b=(4, 8)).export(tmp_path, bits=8, widths=(1, 2, 4)))
    tensors = [tensor for graph in file.model.subgraphs for tensor in graph.tensors]
    scales = [
        tensor.quantization.scale.tobytes()
        for tensor in tensors
        if tensor.quantization is not None and tensor.quantization.scale is not None
    ]
    assert len(scales) == 3 * len(set(scales)) == 3 * 2
    assert all(file.raw.count(one) == 1 for one in set(scales))


def test_a_factor_behind_a_linear_is_refused_by_the_weights_name(tmp_path):
    with pytest.raises(ExportError, match=r"weight a is input \d of MUL"):
        ScaledAfter(a=(4, 4)).export(tmp_path)


def test_a_weight_no_graph_reads_is_refused_by_name(tmp_path):
    with pytest.raises(ExportError, match="no graph reads b"):
        ReadsOneOfTwo(a=(4, 4), b=(4, 4)).export(tmp_path)


def test_two_weights_in_one_storage_are_refused(tmp_path):
    module = TwoLinears(a=(4, 4), b=(4, 4))
    module.b = module.a
    weights = {"a": module.a, "b": module.b}
    with pytest.raises(ExportError, match="share one storage"):
        convert([Signature("step", module, {"x": torch.zeros(1, 1, 4)})], weights, tmp_path / "s")


def test_a_shape_that_is_not_the_checkpoints_is_refused(tmp_path):
    module = ReadsOneOfTwo(a=(4, 4))
    module.numbers["a"] = torch.randn(6, 4)
    with pytest.raises(ExportError, match=r"a has shape \[4, 4\] in the graph and \[6, 4\]"):
        module.export(tmp_path)


def test_the_replaced_lowering_is_put_back_even_after_an_error():
    from litert_torch.backend import inline_consts, lowerings

    registry = lowerings.registry.global_registry
    placeholder = inline_consts.tensor_lowering_placeholder
    before = registry.lookup(placeholder)

    def fail() -> None:
        with vendor.virtual_constants({}):
            assert registry.lookup(placeholder) is not before
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert registry.lookup(placeholder) is before


def test_nothing_is_printed_to_stdout(tmp_path, capfd):
    ReadsOneOfTwo(a=(4, 4)).export(tmp_path)
    assert capfd.readouterr().out == ""
