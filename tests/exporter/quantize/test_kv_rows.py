"""The scales of int8 KV rows, and what the check demands of a bundle with them."""

from dataclasses import replace

import pytest

from exporter.quantize import KvRange, load_recipe
from runtime_py.bundle.manifest import Tolerances


def test_the_largest_number_that_was_seen_has_an_integer_and_some_room():
    found = KvRange(keys=4.0, values=2.5)
    assert 110 < 4.0 / found.key_scale < 127
    assert 110 < 2.5 / found.value_scale < 127


def test_of_zeros_the_scale_is_not_zero():
    assert KvRange(keys=0.0, values=0.0).key_scale > 0


@pytest.mark.parametrize("name", ["float32", "int8"])
def test_the_check_allows_more_but_not_anything(name):
    recipe = load_recipe(name)
    assert recipe.kv_ranges is None
    ranges = {0: KvRange(1.0, 1.0)}
    rounded = recipe.with_int8_rows(ranges)
    assert rounded.kv_ranges == ranges
    assert rounded.rules == recipe.rules
    before, after = recipe.tolerances, rounded.tolerances
    assert before.max_logit_error < after.max_logit_error <= before.max_logit_error + 0.1
    assert before.min_agreement > after.min_agreement >= before.min_agreement - 0.03
    assert before.min_acceptance_ratio > after.min_acceptance_ratio > 0.85


def test_a_recipe_without_a_check_has_none_with_int8_rows_either():
    recipe = replace(load_recipe("int8"), tolerances=Tolerances())
    assert recipe.with_int8_rows({}).tolerances.min_agreement == 0.0
