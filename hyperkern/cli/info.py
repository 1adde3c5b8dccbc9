"""``hyperkern info``: what was found, which backends are usable, and why not."""

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser("info", help="what was found on this machine and which backends are usable")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the report; returns 0.

    Raises:
        ValueError: an environment variable is wrong.
    """
    from .. import __version__, backend_info

    info = backend_info()
    versions = {"hyperkern": __version__, **info["versions"]}
    print("\n".join(f"{name:<12}{version or 'not found'}" for name, version in versions.items()))
    for gpu in info["gpus"] or [None]:
        major_minor = "" if gpu is None else " (sm_{}{})".format(*gpu["capability"])
        print(f"{'gpu':<12}{'none found' if gpu is None else gpu['name'] + major_minor}")
    print(f"{'forced':<12}{info['forced'] or 'no (HYPERKERN_BACKEND is not set)'}")
    print(f"{'checks':<12}{info['check']} (HYPERKERN_CHECK)")
    print("\nbackends, in order of preference")
    for name, by_device in info["backends"].items():
        for device, reasons in by_device.items():
            checked = device == "cuda" and name in info["records"]
            usable = "usable where it has been found right" if checked else "usable"
            print(f"  {name:<12}{device:<6}{usable if not reasons else 'no: ' + '; '.join(reasons)}")
        for line in info["records"].get(name, ()):
            print(f"  {'':<18}{line}")
    return 0
