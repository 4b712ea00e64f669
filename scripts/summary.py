#!/usr/bin/env python3
"""Say what a network is made of and what a pass costs, layer by layer: parameters, operations, memory.

    python scripts/summary.py B/16                                    a published size: Ti, S, B, L, H with 14, 16, 32
    python scripts/summary.py B/16 image_size=384 pool=mean           with other fields of vitnp.ViTConfig
    python scripts/summary.py runs/mnist/checkpoint.safetensors --batch-size 128

No pass is made: a ViT-H/14 takes a tenth of a second, whatever the batch. What is counted, and what is not, stands
below the table and in vitnp/inspection/summary.py.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import vitnp
from vitnp import train


def network_of(name, changes):
    """The configuration of a published size, or the model in a checkpoint, of whatever kind; with `changes` of it."""
    if Path(name).suffix == ".safetensors":
        model = vitnp.load_checkpoint(name).model
        if not changes:
            return model
        asked = dataclasses.replace(model.config, **changes)
        changed = type(model)(asked, rng=None, dtype=model.flat.dtype)
        for field in changes:
            if (kept := getattr(changed.config, field)) != getattr(asked, field):
                raise ValueError(f"{field} is {kept!r} in every {type(model).__name__} like this: leave {field}= out")
        return changed
    try:
        config = vitnp.ViTConfig.named(name)
    except vitnp.ConfigError as error:
        raise ValueError(f"{error}, or give a checkpoint, whose name ends in .safetensors") from None
    return dataclasses.replace(config, **changes)


def parse_changes(texts):
    """["image_size=384", "pool=mean"] -> {"image_size": 384, "pool": "mean"}; a list makes a pair of sides."""
    fields = [field.name for field in dataclasses.fields(vitnp.ViTConfig)]
    changes = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in fields or not equals:
            raise ValueError(f"{text!r} is no change; expected FIELD=VALUE, of the fields {', '.join(fields)}")
        try:
            changes[name] = json.loads(value)
        except json.JSONDecodeError:
            changes[name] = value
    return changes


def run(args):
    found = vitnp.summary(network_of(args.network, parse_changes(args.changes)), args.batch_size)
    if not args.json:
        print(found)
        return 0
    totals = {"parameters": found.parameters, "flops": found.flops, "saved": found.saved}
    layers = [layer._asdict() for layer in found.layers]
    print(json.dumps({"config": found.config.to_dict(), "batch_size": found.batch_size, **totals, "layers": layers}))
    return 0


def make_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("network", metavar="NETWORK", help="a published size as B/16, or a checkpoint")
    parser.add_argument("changes", metavar="FIELD=VALUE", nargs="*", default=[], help="as image_size=384 or depth=4")
    parser.add_argument("--batch-size", type=int, default=1, help="images of the pass")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table, with every block")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    args = make_parser().parse_args()
    raise SystemExit(train.report_errors(lambda: run(args), debug=args.debug))
