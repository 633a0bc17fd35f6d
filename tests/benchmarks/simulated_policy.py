"""The draft-length policy by simulation: mean regret, and the worst cell.

Needs no bundle and no quiet machine; its tests hold these figures to bounds with fewer seeds.
"""

from itertools import product

import click

from tests.runtime_py.draft_length.simulation import (
    ACCEPTED,
    CHANGES,
    TABLES,
    after_changes,
    busy,
    steady,
    worst_of_plain,
)


@click.command(help=__doc__)
@click.option("--seeds", type=click.IntRange(1), default=24, show_default=True)
def main(seeds: int) -> None:
    tables = TABLES.values()
    figures = {
        "steady text": [steady(table, kind, seeds) for table, kind in product(tables, ACCEPTED)],
        "50 tokens after a change": [
            after_changes(table, kinds, seeds) for table, kinds in product(tables, CHANGES)
        ],
        "busy machine": [busy(table, kind, seeds) for table in tables for kind in ("E2B", "code")],
    }
    for name, cells in figures.items():
        click.echo(f"regret, {name}: mean {sum(cells) / len(cells):.1%}, worst {max(cells):.1%}")
    worst = [worst_of_plain(table, seeds) for table in tables]
    mean = sum(worst) / len(worst)
    click.echo(f"plain / auto, always wrong: mean {mean:.3f}, worst {min(worst):.3f}")


if __name__ == "__main__":
    main()
