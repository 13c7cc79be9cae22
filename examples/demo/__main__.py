"""`python -m examples.demo --data .cache/data --out demo`: runs the main jobs and prints where the report is."""

import argparse
import logging
import sys
import time
from pathlib import Path

from examples.demo import a3, anyprec, ginex
from examples.demo.fetched import check_fetched
from examples.demo.report import write_report


def main() -> int:
    """Runs every part and writes `OUT/report.html`; exit status 2 where the data is not there, 130 on Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the unpacked data packages")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.ERROR)
    started = time.monotonic()
    try:
        check_fetched(arguments.data)
        arguments.out.mkdir(parents=True, exist_ok=True)
        sections = [module.run(arguments.data, arguments.out) for module in (ginex, anyprec, a3)]
        report = write_report(arguments.out / "report.html", sections)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: run it again, and it continues", file=sys.stderr)
        return 130
    print(f"{time.monotonic() - started:.0f} s in all")
    print(report.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
