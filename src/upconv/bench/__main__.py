"""Runs `python -m upconv.bench`."""

from upconv.bench.command import main

if __name__ == "__main__":
    main()
