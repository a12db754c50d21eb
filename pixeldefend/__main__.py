"""`python -m pixeldefend`: the command line, where the package is installed."""

from pixeldefend import cli

if __name__ == "__main__":
    cli.run()
