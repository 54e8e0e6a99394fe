#!/usr/bin/env python3
"""modelbake's command line: `build.py --help` lists the verbs."""

import sys

if __name__ == "__main__":
    try:
        from modelbake.cli import main

        main()
    except KeyboardInterrupt:  # before or after modelbake.cli could see to it
        sys.exit(130)
