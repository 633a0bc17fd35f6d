"""A recipe says for every tensor how it is stored, or says why it cannot."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from exporter.cli.command import main
from exporter.config import known_recipes
from exporter.errors import ExportError
from exporter.graph.spec import LayerSpec
from exporter.lower import executorch, litert, onnx
from exporter.quantize import WeightType, load_recipe, plan, report, size_bytes


def write(folder, text):
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def layer(index: int, kv_source: int) -> LayerSpec:
    return LayerSpec(
        index=index,
        kind="full_attention",
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        intermediate_size=8,
        kv_source=kv_source,
        values_from_keys=False,
    )


class Source:
    """Two layers, of which the second reads the rows of the first."""

    shapes = {"layers.0.mlp.up_proj.weight": (6, 4), "norm.weight": (4,)}  # noqa: RUF012

    @property
    def spec(self):
        return SimpleNamespace(layers=(layer(0, 0), layer(1, 0)))

    def names(self):
        return list(self.shapes)

    def packed(self, _name):
        return None

    def shape(self, name):
        return self.shapes[name]


@pytest.mark.parametrize(
    ("name", "bits"), [("float32", 32), ("float16", 16), ("int8", 8), ("int4", 4)]
)
def test_named_recipes_store_matrices_as_they_are_called_and_vectors_as_float32(name, bits):
    types = plan(Source(), load_recipe(name))
    assert {name: kind.bits for name, kind in types.items()} == {
        "layers.0.mlp.up_proj.weight": bits,
        "norm.weight": 32,
    }


@pytest.mark.parametrize(
    "name",
    [
        "layers.7.per_layer_input_gate.weight",
        "layers.7.per_layer_projection.weight",
        "per_layer_model_projection.weight",
        "drafter.pre_projection.weight",
        "drafter.post_projection.weight",
        "drafter.masked_embedding.centroids.weight",
    ],
)
def test_int4_keeps_the_narrow_places_at_8_bits(name):
    assert load_recipe("int4").weight_type(name, (8, 8)) == WeightType(8)


@pytest.mark.parametrize(
    "name", ["embed_tokens.weight", "embed_tokens_per_layer.weight", "drafter.embed_tokens.weight"]
)
def test_int4_quantizes_the_tables_too(name):
    assert load_recipe("int4").weight_type(name, (8, 8)).bits == 4


@pytest.mark.parametrize("recipe", ["int8", "int4", "int4-groups"])
def test_routers_stay_float32_and_experts_are_matrices_like_others(recipe):
    chosen, usual = load_recipe(recipe), load_recipe(recipe).weight_type("layers.3.mlp", (4, 64))
    assert chosen.weight_type("layers.3.router.proj.weight", (8, 64)) == WeightType(32)
    for name in ("layers.3.experts.gate_up_proj", "layers.3.experts.down_proj"):
        assert chosen.weight_type(name, (8, 4, 64)) == usual
    with pytest.raises(ExportError, match="7 columns"):
        load_recipe("int4").weight_type("layers.3.experts.down_proj", (8, 4, 7))


def test_first_matching_rule_wins_and_the_prefix_is_part_of_the_name(tmp_path):
    recipe = load_recipe(
        write(
            tmp_path,
            '[[rule]]\npattern = "drafter.*"\nbits = 8\n[[rule]]\npattern = "*"\nbits = 4\n',
        )
    )
    name = "layers.0.mlp.up_proj.weight"
    assert plan(Source(), recipe)[name] == WeightType(4)
    assert plan(Source(), recipe, "drafter.")[name] == WeightType(8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[rule]]\npattern = "*"\nbits = 8\nblock = 32\n', "unknown key block"),
        ('owner = "me"\n[[rule]]\npattern = "*"\nbits = 8\n', "unknown key owner"),
        ('[[rule]]\npattern = "*"\nbits = 3\n', "bits = 3"),
        ('[[rule]]\npattern = "*"\nbits = 8\nlayers = "15-34"\n', "layers = 15-34; give"),
        ('[[rule]]\npattern = "*"\nbits = 8\nlayers = 15\n', "layers = 15; give"),
        ('[[rule]]\npattern = "*"\nbits = 8\nlayers = ["own-kv"]\n', "layers = \\['own-kv'\\]"),
        ('[[rule]]\npattern = "*"\nbits = 2\ngroup_size = 32\n', "only 4-bit weights"),
        ('[[rule]]\npattern = "*"\nbits = 8.0\n', "bits = 8.0"),
        ('[[rule]]\npattern = "*"\nbits = "8"\n', "bits = 8"),
        ("[[rule]]\npattern = 5\nbits = 8\n", "pattern = 5"),
        ('[rule]\npattern = "*"\nbits = 8\n', "no \\[\\[rule\\]\\]"),
        ("rule = [3]\n", "no \\[\\[rule\\]\\]"),
        ('[[rule]]\npattern = "*"\nbits = 8\ngranularity = "tensor"\n', "unknown key granularity"),
        ('[[rule]]\npattern = "*"\nbits = 4\ngroup_size = 48\n', "group_size = 48"),
        ('[[rule]]\npattern = "*"\nbits = 4\ngroup_size = "32"\n', "group_size = 32"),
        ('[[rule]]\npattern = "*"\nbits = 4\ngroup_size = true\n', "group_size = True"),
        ('[[rule]]\npattern = "*"\nbits = 8\ngroup_size = 32\n', "only 4-bit weights"),
        ('[[rule]]\npattern = "*"\nbits = 4\nkeep_grid = 1\n', "keep_grid = 1; give true"),
        ('[[rule]]\npattern = "*"\nbits = 8\nkeep_grid = true\n', "keep_grid with bits = 8"),
        ("[[rule]]\nbits = 8\n", "lacks pattern"),
        ('description = "nothing"\n', "no \\[\\[rule\\]\\]"),
        ("[[rule]\n", "not valid TOML"),
    ],
)
def test_what_a_recipe_may_not_say(tmp_path, text, message):
    with pytest.raises(ExportError, match=message):
        load_recipe(write(tmp_path, text))


def test_an_unknown_recipe_is_answered_with_the_known_ones():
    with pytest.raises(ExportError, match="float16, float32, int4, int4-groups, int8, mobile"):
        load_recipe("int5")
    with pytest.raises(ExportError, match="no such recipe file"):
        load_recipe("nowhere.toml")


@pytest.mark.parametrize("name", known_recipes())
def test_a_printed_recipe_is_the_recipe_and_needs_nothing_else(tmp_path, name):
    printed = CliRunner().invoke(main, ["--print-recipe", name])
    assert printed.exit_code == 0
    copied = load_recipe(write(tmp_path, printed.output))
    assert replace(copied, name=name) == load_recipe(name)


def test_a_tensor_no_rule_matches_is_an_error(tmp_path):
    recipe = load_recipe(write(tmp_path, '[[rule]]\npattern = "layers.*"\nbits = 8\n'))
    with pytest.raises(ExportError, match=r"no rule matches lm_head\.weight"):
        recipe.weight_type("lm_head.weight", (4, 4))


def test_odd_rows_cannot_be_4_bits():
    with pytest.raises(ExportError, match="7 columns"):
        load_recipe("int4").weight_type("layers.0.mlp.up_proj.weight", (4, 7))


def test_groups_that_do_not_divide_a_row_give_way_to_one_scale_per_row(caplog):
    recipe = load_recipe("int4-groups")
    assert recipe.weight_type("layers.0.mlp.up_proj.weight", (8, 64)) == WeightType(4, 32)
    assert recipe.weight_type("layers.0.mlp.up_proj.weight", (8, 48)) == WeightType(4)
    with caplog.at_level("WARNING"):
        report(Source(), recipe)
    assert "layers.0.mlp.up_proj.weight (4 columns)" in caplog.text
    caplog.clear()
    report(Source(), load_recipe("int4"))
    assert "one scale per row" not in caplog.text


def test_litert_refuses_groups_and_executorch_takes_them():
    types = {"layers.0.mlp.up_proj.weight": WeightType(4, 32)}
    with pytest.raises(
        ExportError, match=r"up_proj\.weight: one scale for every 32 .* --runtime executorch"
    ):
        litert.LOWERING.check(types)
    executorch.LOWERING.check(types)


class TwoKinds(Source):
    shapes = {
        f"layers.{index}.{name}.weight": (8, 8)
        for index in (0, 1)
        for name in ("self_attn.q_proj", "mlp.up_proj", "per_layer_input_gate")
    } | {
        "embed_tokens.weight": (8, 8),
        "embed_tokens_per_layer.weight": (8, 8),
        "norm.weight": (8,),
    }


def test_a_rule_may_be_for_layers_that_own_kv_rows_or_share_them(tmp_path):
    path = write(
        tmp_path,
        '[[rule]]\npattern = "layers.*"\nlayers = "own-kv"\nbits = 8\n'
        '[[rule]]\npattern = "*"\nlayers = "shared-kv"\nbits = 4\n'
        '[[rule]]\npattern = "*"\nbits = 2\n',
    )
    types = plan(TwoKinds(), load_recipe(path))
    bits = {name: kind.bits for name, kind in types.items()}
    assert bits["layers.0.mlp.up_proj.weight"] == 8
    assert bits["layers.1.mlp.up_proj.weight"] == 4
    assert bits["embed_tokens.weight"] == 2  # in no layer
    assert bits["norm.weight"] == 32


def test_mobile_is_the_layout_of_the_official_bundle():
    bits = {name: kind.bits for name, kind in plan(TwoKinds(), load_recipe("mobile")).items()}
    assert bits == {
        "layers.0.self_attn.q_proj.weight": 4,
        "layers.0.mlp.up_proj.weight": 4,
        "layers.0.per_layer_input_gate.weight": 8,
        "layers.1.self_attn.q_proj.weight": 4,
        "layers.1.mlp.up_proj.weight": 2,
        "layers.1.per_layer_input_gate.weight": 8,
        "embed_tokens.weight": 2,
        "embed_tokens_per_layer.weight": 4,
        "norm.weight": 32,
    }
    drafter = plan(TwoKinds(), load_recipe("mobile"), "drafter.")
    assert {kind.bits for name, kind in drafter.items() if name != "norm.weight"} == {4}


def test_rows_of_2_bits_must_fill_their_bytes():
    with pytest.raises(ExportError, match="6 columns, 2-bit rows need a multiple of 4"):
        load_recipe("mobile").weight_type("embed_tokens.weight", (4, 6))


@pytest.mark.parametrize(("bits", "instead"), [(2, "int4"), (16, "float32 or int8")])
def test_executorch_refuses_2_and_16_bits_and_the_others_take_them(bits, instead):
    types = {"layers.1.mlp.up_proj.weight": WeightType(bits)}
    wanted = rf"up_proj\.weight: {bits} bits, .* use --quantize {instead}, or --runtime"
    with pytest.raises(ExportError, match=wanted):
        executorch.LOWERING.check(types)
    litert.LOWERING.check(types)
    onnx.LOWERING.check(types)


def test_size_counts_packed_bytes():
    assert [size_bytes((6, 4), WeightType(bits)) for bits in (32, 16, 8, 4, 2)] == [
        *(96, 48, 24, 12, 6)
    ]
