"""Print the accuracies of trained networks or the robust accuracy of one, or recheck a file of results."""

import argparse
import functools
from pathlib import Path
from typing import Any

from mnist_jax import data
from mnist_jax.certify.exact import Bracket
from mnist_jax.commands import campaign, certification, console, job, own_model
from mnist_jax.data import SPLITS
from mnist_jax.errors import InputError
from mnist_jax.evaluation import accuracy
from mnist_jax.storage import checkpoint, results, verify, verify_brackets, verify_certificates


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = console.Parser("evaluate", __doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", help=job.MODELS)
    which.add_argument("--all", action="store_true", help="every network that ships with the project")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--verify", type=Path, metavar="RESULTS", help="recheck a file of attack results or certificates")
    ensemble = "robust accuracy at a radius, by AutoAttack's standard ensemble"
    what.add_argument("--robust", action="store_true", help=ensemble)
    parser.add_argument("--output", type=Path, default=checkpoint.RUNS, help="folder of your own networks, and results")
    parser.add_data_options(dataset=None)
    always = set(vars(parser.parse_args([])))  # the options above; those of a campaign appear only where they are given
    campaign.add_options(parser, "with --robust")
    options = parser.parse_args(argv)
    if not (options.model or options.all or options.verify):
        parser.error("one of the arguments --model --all --verify is required")
    if options.all and (options.verify or options.robust):
        parser.error(f"argument {'--verify' if options.verify else '--robust'}: not allowed with argument --all")
    if not options.robust and (extra := sorted(set(vars(options)) - always)):
        parser.error(f"argument --{extra[0]}: only with --robust")
    return options


def chosen(options: argparse.Namespace) -> list[Path | str]:
    """The networks to evaluate: paths of checkpoints, or a network of the user's own as --model names it."""
    if own_model.is_meant(options.model):
        return [options.model]
    if not options.all:
        return [checkpoint.find(options.model, options.output)]
    if paths := sorted(checkpoint.shipped().glob("*.safetensors")):
        return [*paths]
    raise InputError(f"there are no trained networks in {checkpoint.shipped()}; reinstall mnist_jax")


load = functools.cache(data.load)  # most networks are of one dataset


def evaluate(model: Path | str, options: argparse.Namespace) -> dict[str, Any]:
    """The accuracies of a network on all splits of its own dataset, or of the dataset that the options name."""
    if isinstance(model, str):
        name = options.dataset or "mnist"
        dataset = load(name, options.data_dir)
        path, classifier, _ = job.own(model, name, dataset.val)
    else:
        path, trained = model, checkpoint.load(model)
        name = options.dataset or trained.about.get("dataset", "mnist")
        dataset = load(name, options.data_dir)
        for split in SPLITS:
            job.check_fits(path, trained.network, name, getattr(dataset, split))
        classifier = trained.classifier()
    accuracies = {split: accuracy(classifier, getattr(dataset, split)) for split in SPLITS}
    return {"model": path.stem, "path": str(path), "dataset": name, "accuracies": accuracies}


WIDTH = 32  # letters of the column of names; the longest shipped one, with its defence, fits

HEADER = f"{'network':{WIDTH}}" + "".join(f"{split:>9}" for split in SPLITS)


def row(result: dict[str, Any]) -> str:
    return f"{result['model']:{WIDTH}}" + "".join(f"{accuracy:>9.2%}" for accuracy in result["accuracies"].values())


def check(options: argparse.Namespace) -> int:
    """Rechecks the file of results that --verify names. Returns the exit status: 1 where a claim does not hold."""
    record = results.load(options.verify, "attack results or certificates")
    results.check_about(options.verify, record)
    model, split, dataset = (record.about[key] for key in ("model", "split", "dataset"))
    tested = job.subject(options.model or model, split, options, dataset)
    console.note(f"verifying {options.verify} with {tested.path}")
    what = (record, tested.path, tested.classifier, tested.split, options.verify)
    if isinstance(record.result, results.Smoothed):
        raise InputError(f"{options.verify} is of smoothing; certify once more with another --seed to compare")
    if isinstance(record.result, results.Certificates):
        report = verify_certificates.verify(*what, certification.prover(options.verify, record))
        text = verify_certificates.text(report)
    elif isinstance(record.result, Bracket):
        report = verify_brackets.verify(*what)
        text = verify_brackets.text(report)
    else:
        report = verify.verify(*what)
        text = verify.text(report)
    console.report(report, text, as_json=options.json)
    return 1 if report["wrong"] else 0


def robust(options: argparse.Namespace) -> None:
    """Attacks the images by AutoAttack, and prints the robust accuracy: the share that stays classified correctly."""
    record, summary = campaign.carry_out(campaign.prepare(options, "auto_attack"), options)
    summary |= {
        "accuracy": float((record.result.distance > 0).mean()),  # a misclassified image has distance 0
        "robust_accuracy": float((~record.result.success).mean()),
    }
    lines = (
        f"robust accuracy:  {summary['robust_accuracy']:.2%} of {summary['images']} images, "
        f"at radius {options.radius:g} of norm {summary['norm']:g}",
        f"accuracy:         {summary['accuracy']:.2%}",
        f"cost:             {campaign.cost(summary)}",
        f"results:          {summary['results']}",
    )
    console.report(summary, "\n".join(lines), as_json=options.json)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    console.start()
    if options.verify:
        return check(options)
    if options.robust:
        robust(options)
        return 0
    results: list[dict[str, Any]] = []
    for path in chosen(options):
        console.note(f"evaluating {path}")
        results.append(evaluate(path, options))
        if not options.json:
            console.show(row(results[-1]) if len(results) > 1 else f"{HEADER}\n{row(results[-1])}")
    if options.json:
        console.report({"networks": results}, "", as_json=True)
    return 0
