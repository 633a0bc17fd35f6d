"""The steps that made gemma4-tiny, in order: tokenizer, target, drafter, measure."""

import logging
from collections.abc import Callable
from pathlib import Path

import click
from tokenizers import Tokenizer
from transformers import Gemma4ForCausalLM

from . import centroids, corpus, generate, measure, prompts, tokenizer, train_drafter, train_target
from .assistant import allow_assistants
from .data import Mix, chat_stream, raw_stream

NUM_GENERATED_BATCHES = 10
NUM_MEASURED_TOKENS = 64


def work_option(step: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--work",
        type=click.Path(path_type=Path, file_okay=False),
        required=True,
        help="Folder for checkpoints and results; a step that was cut off goes on from there.",
    )(step)


def corpus_option(step: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--corpus",
        "corpus_folder",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        help=f"The unpacked Debian package {corpus.PACKAGE}; without it, it is downloaded.",
    )(step)


def minutes_option(default: float) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        "--minutes",
        type=float,
        default=default,
        show_default=True,
        help="Training time, wall clock.",
    )


def read_corpus(
    work: Path, corpus_folder: Path | None
) -> tuple[list[corpus.Document], list[corpus.Document]]:
    return corpus.split(corpus.read(corpus_folder or corpus.fetch(work)))


def read_tokenizer(work: Path) -> Tokenizer:
    return Tokenizer.from_file(str(work / "target" / "tokenizer.json"))


def mix_of(trained_tokenizer: Tokenizer, documents: list[corpus.Document]) -> Mix:
    return Mix(raw_stream(trained_tokenizer, documents), chat_stream(trained_tokenizer, documents))


@click.group(help=__doc__)
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("train").setLevel(logging.INFO)


@main.command("tokenizer")
@work_option
@corpus_option
def tokenizer_step(work: Path, corpus_folder: Path | None) -> None:
    """Train the tokenizer and choose the held-out prompts."""
    train, held_out = read_corpus(work, corpus_folder)
    trained = tokenizer.train(train)
    tokenizer.save(trained, work / "target")
    prompts.write(prompts.held_out_prompts(trained, held_out), work / "prompts.jsonl")


@main.command("target")
@work_option
@corpus_option
@minutes_option(34)
def target_step(work: Path, corpus_folder: Path | None, minutes: float) -> None:
    """Train the target."""
    train, held_out = read_corpus(work, corpus_folder)
    trained_tokenizer = read_tokenizer(work)
    target = train_target.train(mix_of(trained_tokenizer, train), work, minutes)
    train_target.save(target, trained_tokenizer, work / "target")
    train_target.report_losses(work / "target", mix_of(trained_tokenizer, held_out))


@main.command("drafter")
@work_option
@corpus_option
@minutes_option(17)
def drafter_step(work: Path, corpus_folder: Path | None, minutes: float) -> None:
    """Train the drafter and its centroid head."""
    allow_assistants()
    train, _ = read_corpus(work, corpus_folder)
    trained_tokenizer = read_tokenizer(work)
    target = Gemma4ForCausalLM.from_pretrained(work / "target", dtype="float32")
    target = target.eval().requires_grad_(False)
    mix = mix_of(trained_tokenizer, train)
    requests = generate.requests_by_length(trained_tokenizer, train)
    generated = generate.windows_once(
        work / "generated.pt",
        lambda: generate.windows(
            target, mix, requests, NUM_GENERATED_BATCHES, train_drafter.WINDOW_LENGTH
        ),
    )
    drafter_mix = train_drafter.DrafterMix(mix, generated)
    drafter = train_drafter.train(target, drafter_mix, work, minutes)
    centroids.cluster_tokens(drafter)
    recall = centroids.train_centroids(target, drafter, drafter_mix)
    train_drafter.save(drafter, work / "drafter")
    click.echo(f"centroids choose the cluster of the best token {recall:.2%} of the time")


@main.command("measure")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--draft-length", type=int, multiple=True, default=(1, 3, 4), show_default=True)
def measure_step(folder: Path, draft_length: tuple[int, ...]) -> None:
    """Measure acceptance over FOLDER/prompts.jsonl with FOLDER/target and FOLDER/drafter."""
    target, drafter = measure.load(folder)
    held_out = measure.read_prompts(folder)
    for length in draft_length:
        click.echo(measure.acceptance(target, drafter, held_out, length, NUM_MEASURED_TOKENS))


if __name__ == "__main__":
    main(prog_name="python -m train")
