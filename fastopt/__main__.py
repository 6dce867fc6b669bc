"""python -m fastopt: the facts of this build and this machine; with ``bench``: how fast it is here."""

import sys

from fastopt import machine

if __name__ == "__main__":
    if sys.argv[1:] == ["bench"]:
        from fastopt.benchmark import report

        report.main()
    elif sys.argv[1:]:
        sys.exit("usage: python -m fastopt [bench]")
    else:
        for name, value in machine.facts().items():
            print(f"{name + ':':18}{value}")
