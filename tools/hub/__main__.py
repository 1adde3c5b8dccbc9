"""``python -m tools.hub``; `make hub`."""

import argparse
from pathlib import Path

from .package import write


def main() -> None:
    parser = argparse.ArgumentParser(prog="make hub", description="Write the package for the kernels hub.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("build/hub/hyperkern"), help="default %(default)s")
    parser.add_argument(
        "--repo-id", default="hyperkern/hyperkern", metavar="OWNER/NAME", help="where it is to be published"
    )
    options = parser.parse_args()
    written = write(options.folder, options.repo_id)
    size = sum(path.stat().st_size for path in written)
    print(f"{options.folder}: {len(written)} files, {size / 1e6:.1f} MB; build them there with kernel-builder")


if __name__ == "__main__":
    main()
