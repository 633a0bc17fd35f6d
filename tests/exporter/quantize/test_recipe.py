"""A recipe says for every tensor how it is stored, or says why it cannot."""

import pytest

from exporter.errors import ExportError
from exporter.lower import executorch, litert
from exporter.quantize import WeightType, load_recipe, plan, report, size_bytes


def write(folder, text):
    path = folder / "mine.toml"
    path.write_text(text)
    return path


class Source:
    shapes = {"layers.0.mlp.up_proj.weight": (6, 4), "norm.weight": (4,)}  # noqa: RUF012

    def names(self):
        return list(self.shapes)

    def shape(self, name):
        return self.shapes[name]


@pytest.mark.parametrize(("name", "bits"), [("float32", 32), ("int8", 8), ("int4", 4)])
def test_named_recipes_store_matrices_as_they_are_called_and_vectors_as_float32(name, bits):
    types = plan(Source(), load_recipe(name))
    assert types == {
        "layers.0.mlp.up_proj.weight": WeightType(bits),
        "norm.weight": WeightType(32),
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
    assert load_recipe("int4").weight_type(name, (8, 8)) == WeightType(4)


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
        ("[[rule]]\nbits = 8\n", "lacks pattern"),
        ('description = "nothing"\n', "no \\[\\[rule\\]\\]"),
        ("[[rule]\n", "not valid TOML"),
    ],
)
def test_what_a_recipe_may_not_say(tmp_path, text, message):
    with pytest.raises(ExportError, match=message):
        load_recipe(write(tmp_path, text))


def test_an_unknown_recipe_is_answered_with_the_known_ones():
    with pytest.raises(ExportError, match="float32, int4, int4-groups, int8"):
        load_recipe("int5")
    with pytest.raises(ExportError, match="no such recipe file"):
        load_recipe("nowhere.toml")


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
    with pytest.raises(ExportError, match=r"up_proj\.weight: groups of 32 .* --runtime executorch"):
        litert.check(types)
    executorch.check(types)


def test_size_counts_packed_bytes():
    assert [size_bytes((6, 4), WeightType(bits)) for bits in (32, 8, 4)] == [96, 24, 12]
