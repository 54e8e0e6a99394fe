#!/usr/bin/env python3
"""modelbake's command line: `build.py --help` lists the verbs."""

from modelbake.cli import main

if __name__ == "__main__":
    main()
